"""A real gateway that asks who calls, with callers of every kind and one resource of each kind."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from stillhouse.common.v1 import access_pb2
from stillhouse.gateway.v1 import access_pb2 as pb

from services.common.blobs import BlobStore
from services.common.manifest import Item, Manifest
from services.gateway import students
from services.gateway.access import api_keys, key_format
from services.gateway.access.tables import ApiKeyRow
from services.gateway.store import DatasetRow, JobEventRow, JobRow, Store
from tests.gateway.parts import make_photo
from tests.gateway.student_world import made
from tests.support import free_port, service

PROJECT, OTHER = "fruit", "other"
REFUSED = ("no key", "wrong key", "garbage", "expired key", "revoked key")
"""Callers who are nobody."""
CALLERS = (*REFUSED, "other project's", "viewer", "tuner", "runner", "admin", "everywhere")


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


def fill(store: Store, blobs: BlobStore) -> str:
    """Make a dataset, a job, a student and a key to revoke; return the digest of an image."""
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
    students.publish(store, PROJECT, "fruit", made())
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
