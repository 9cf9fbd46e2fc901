"""A real gateway that asks who calls, with callers of every kind and one resource of each kind."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from stillhouse.common.v1 import access_pb2
from stillhouse.gateway.v1 import access_pb2 as pb

from services.common.blobs import BlobStore
from services.common.manifest import Item, Manifest
from services.common.tensors import pack_arrays
from services.gateway import students
from services.gateway.access import api_keys, key_format
from services.gateway.access.tables import ApiKeyRow
from services.gateway.projects.rows import DeletionRow
from services.gateway.store import DatasetRow, JobEventRow, JobRow, Store
from tests.gateway.parts import make_photo
from tests.gateway.student_world import made
from tests.support import free_port, service

PROJECT, OTHER = "fruit", "other"
REFUSED = ("no key", "wrong key", "garbage", "expired key", "revoked key")
"""Callers who are nobody."""
CALLERS = (*REFUSED, "other project's", "viewer", "tuner", "runner", "admin", "everywhere")
CLASSES, CONCEPTS, WIDTH = ("a", "b"), ("red", "round", "ripe"), 4


@dataclass(frozen=True)
class AccessWorld:
    """Where the gateway is, what callers send, and the digest of an image."""

    address: str
    http: str
    keys: dict[str, str]
    digest: str
    store: Store

    def metadata(self, caller: str) -> tuple[tuple[str, str], ...]:
        key = self.keys[caller]
        return (("authorization", f"Bearer {key}"),) if key else ()

    def headers(self, caller: str) -> dict[str, str]:
        return dict(self.metadata(caller))


def make_key(store: Store, project: str, role: int, **changed: float) -> str:
    request = pb.CreateApiKeyRequest(project=project, role=role)
    row, secret = api_keys.create(store, request, "tests")
    with store.write() as session:
        found = session.get_one(ApiKeyRow, row.pk)
        for name, value in changed.items():
            setattr(found, name, value)
    return secret


def make_keys(store: Store) -> dict[str, str]:
    """Return what each of CALLERS sends, but for the one of the key file."""
    runner, past = access_pb2.ROLE_RUNNER, time.time() - 60
    return {
        "no key": "",
        "wrong key": key_format.make(key_format.KEY)[0],
        "garbage": "letmein",
        "expired key": make_key(store, PROJECT, access_pb2.ROLE_ADMIN, expires=past),
        "revoked key": make_key(store, PROJECT, access_pb2.ROLE_ADMIN, revoked=past),
        "other project's": make_key(store, OTHER, access_pb2.ROLE_ADMIN),
        "viewer": make_key(store, PROJECT, access_pb2.ROLE_VIEWER),
        "tuner": make_key(store, PROJECT, access_pb2.ROLE_TUNER),
        "runner": make_key(store, PROJECT, runner),
        "admin": make_key(store, PROJECT, access_pb2.ROLE_ADMIN),
    }


def put_student(blobs: BlobStore) -> dict[str, str]:
    """Store a student of two classes on three words; return the digests of its files."""
    shape, column = (len(CLASSES), len(CONCEPTS)), np.zeros(len(CONCEPTS), np.float32)
    arrays = {
        "weight": np.arange(6, dtype=np.float32).reshape(shape),
        "bias": np.zeros(len(CLASSES), np.float32),
        "mean": column,
        "std": column + 1,
        "text": np.eye(len(CONCEPTS), WIDTH, dtype=np.float16),
        "text_mean": np.zeros(WIDTH, np.float32),
        "image_mean": np.zeros(WIDTH, np.float32),
    }
    weights = blobs.put(PROJECT, pack_arrays(arrays))
    names = {"classes": CLASSES, "concepts": CONCEPTS, "loss": "softmax", "weights": weights}
    card = {**names, "class_mean_presence": np.ones(shape).tolist()}
    return {
        "weights_digest": weights,
        "card_digest": blobs.put(PROJECT, json.dumps(card).encode()),
        "report_digest": blobs.put(PROJECT, b"{}"),
    }


def fill(store: Store, blobs: BlobStore) -> str:
    """Make a dataset, a job, a student, a key to revoke, and a deletion of what had the project's
    name before; return the digest of an image."""
    digest = blobs.put(PROJECT, make_photo(1, (60, 40)))
    manifest = Manifest(("a", "b"), False, (Item("a/1.jpg", digest, "train", (0,)),))
    dataset = DatasetRow(project=PROJECT, dataset_id="pics", state="READY", source_json="{}")
    dataset.manifest_digest = blobs.put(PROJECT, manifest.to_bytes())
    job = JobRow(project=PROJECT, job_id="job-1", state="SUCCEEDED", ended=time.time())
    job.spec_json = '{"teacherHead": {}}'
    with store.write() as session:
        session.add_all([dataset, job])
        session.flush()
        said = '{"state": "SUCCEEDED", "message": "done", "stages": [], "eta_s": 0}'
        session.add(JobEventRow(job_pk=job.pk, seq=1, payload_json=said))
        session.add(
            ApiKeyRow(
                key_id="kspare0000",
                project=PROJECT,
                role=access_pb2.ROLE_VIEWER,
                digest=b"",
                creator="tests",
                expires=time.time() + 600,
            )
        )
        was, left = '{"jobs": 3}', '{"jobs": 0}'
        session.add(
            DeletionRow(project=PROJECT, before_json=was, after_json=left, ended=time.time())
        )
    students.publish(store, PROJECT, "fruit", made(**put_student(blobs)))
    return digest


@contextmanager
def access_world(folder: Path, **environment: str) -> Iterator[AccessWorld]:
    """Run a gateway process that asks who calls; what it calls is away."""
    url = f"sqlite:///{folder}/gateway.db"
    store = Store(url)
    keys = make_keys(store)
    keys["everywhere"] = key_format.make(key_format.KEY)[0]
    file = folder / "admin.key"
    file.write_text(keys["everywhere"] + "\n")
    file.chmod(0o600)
    digest = fill(store, BlobStore(str(folder / "blobs")))
    nobody, http_port = f"127.0.0.1:{free_port()}", free_port()
    given = {
        "GATEWAY_AUTH": "required",
        "GATEWAY_ADMIN_KEY_FILE": str(file),
        "GATEWAY_DATABASE_URL": url,
        "GATEWAY_TEACHER_ADDRESS": nobody,
        "GATEWAY_CONCEPTS_ADDRESS": nobody,
        "GATEWAY_STUDENT_ADDRESS": nobody,
        "GATEWAY_HTTP_PORT": str(http_port),
        "GATEWAY_PEER_TIMEOUT_S": "1",
        "GATEWAY_SHARD_TIMEOUT_S": "1",
        **environment,
    }
    with service("gateway", folder, **given) as running:
        try:
            yield AccessWorld(running.address, f"http://127.0.0.1:{http_port}", keys, digest, store)
        finally:
            store.close()
