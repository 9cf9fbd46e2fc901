"""A small concept data set as real shards in a blob store, and the service as a real process."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from stillhouse.common.v1 import items_pb2
from stillhouse.student.v1 import student_pb2, student_pb2_grpc

from services.common.blobs import BlobStore
from services.common.manifest import Item, Manifest
from services.common.presence import presence
from services.common.shards import SHARD_ITEMS, pack_regions, pack_rows
from services.common.tensors import pack_arrays, to_message

PROJECT = "default"
CLASSES = ("apple", "pear", "melon", "orange")
DIM, WORDS, ITEMS = 24, 30, 240
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Data:
    """References to what `make_data` wrote, and the arrays themselves."""

    manifest: str
    teacher: list[str]
    regions: list[str]
    features: list[str]
    bank: str
    control: str
    region_rows: list[np.ndarray]
    logits: np.ndarray
    hot: np.ndarray
    split: np.ndarray
    words: list[str] = field(default_factory=lambda: [f"word {k}" for k in range(WORDS)])


def _splits() -> list[str]:
    return [("train", "train", "train", "val", "test")[i % 5] for i in range(ITEMS)]


def make_data(blobs: BlobStore, *, multi_label: bool = False, broken_item: int = 7) -> Data:
    """Four classes, each made of its own words; item `broken_item` has no regions."""
    rng = np.random.default_rng(5)
    text = rng.normal(size=(WORDS, DIM)) + 0.5
    centred = text - text.mean(0)
    wanted = rng.integers(0, WORDS, (len(CLASSES), 3))
    hot = np.eye(len(CLASSES), dtype=bool)[np.arange(ITEMS) // 5 % len(CLASSES)]
    if multi_label:
        hot = hot | (rng.random(hot.shape) < 0.3)
    regions = [_regions(rng, centred, wanted, row) for row in hot]
    offsets = np.concatenate([[0], np.cumsum([len(r) for r in regions])])
    mean = np.concatenate(regions).astype(np.float32).mean(0)
    found = presence(np.concatenate(regions), offsets, text, mean, text.mean(0)).values
    logits = np.stack([found[:, words].sum(1) for words in wanted], 1) * 4
    logits = (logits - logits.mean(0) + rng.normal(size=logits.shape) * 0.3).astype(np.float32)
    return _store(blobs, regions, logits, hot, text, mean, multi_label, broken_item)


def _regions(rng, centred, wanted, hot) -> np.ndarray:
    rows = [rng.normal(size=DIM) * 0.8 for _ in range(1 + rng.integers(0, 3))]
    rows += [
        centred[w] + rng.normal(size=DIM) * 0.7 for k in np.flatnonzero(hot) for w in wanted[k]
    ]
    return np.stack([np.mean(rows, 0), *rows]).astype(np.float16)


def _store(blobs, regions, logits, hot, text, mean, multi_label, broken_item) -> Data:
    digests = [hashlib.sha256(b"item %d" % i).hexdigest() for i in range(ITEMS)]
    items = tuple(
        Item(f"item-{i}", digests[i], split, tuple(int(k) for k in np.flatnonzero(hot[i])))
        for i, split in enumerate(_splits())
    )
    starts = range(0, ITEMS, SHARD_ITEMS)
    packed = [
        None if i == broken_item else (r, np.zeros((2, 2), np.uint8)) for i, r in enumerate(regions)
    ]
    whole = np.stack([r[0] for r in regions])
    bank = {"text": text.astype("<f2"), "text_mean": text.mean(0).astype("<f4"), "image_mean": mean}
    other = np.random.default_rng(9).normal(size=(WORDS, DIM))

    def put(data: bytes) -> str:
        return blobs.put(PROJECT, data)

    return Data(
        manifest=put(Manifest(CLASSES, multi_label, items).to_bytes()),
        teacher=[put(pack_rows("logits", list(logits[i : i + SHARD_ITEMS]))) for i in starts],
        regions=[put(pack_regions(packed[i : i + SHARD_ITEMS])) for i in starts],
        features=[put(pack_rows("features", list(whole[i : i + SHARD_ITEMS]))) for i in starts],
        bank=put(pack_arrays(bank)),
        control=put(pack_arrays({"text": other.astype("<f2")})),
        region_rows=regions,
        logits=logits,
        hot=hot,
        split=np.array(_splits()),
    )


def ref(digest: str) -> items_pb2.BlobRef:
    return items_pb2.BlobRef(digest=digest)


def concept_recipe(data: Data, **options) -> student_pb2.ConceptRecipe:
    training = student_pb2.TrainingData(
        manifest=ref(data.manifest),
        teacher_shards=[ref(d) for d in data.teacher],
        region_shards=[ref(d) for d in data.regions],
    )
    return student_pb2.ConceptRecipe(
        data=training,
        concepts=data.words,
        concept_embeddings=ref(data.bank),
        control_embeddings=ref(data.control),
        **{"nec": 4, "control_draws": 3, **options},
    )


def head_recipe(data: Data, **options) -> student_pb2.LinearHeadRecipe:
    training = student_pb2.TrainingData(
        manifest=ref(data.manifest), feature_shards=[ref(d) for d in data.features]
    )
    return student_pb2.LinearHeadRecipe(
        data=training, backbone="small", backbone_digest="ab" * 32, **options
    )


def concept_request(data: Data, run_id: str, **options) -> student_pb2.TrainRequest:
    return student_pb2.TrainRequest(
        project=PROJECT, run_id=run_id, concept=concept_recipe(data, **options)
    )


def region_input(rows: np.ndarray, item_id: str = "") -> student_pb2.RegionInput:
    return student_pb2.RegionInput(item_id=item_id, embeddings=to_message(rows))


class Service:
    """The student service as a process on a port of the system's choosing."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.runs = folder / "runs"
        self.blobs = BlobStore(str(folder / "blobs"))
        env = {
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'gen'}",
            "STUDENT_PORT": "0",
            "STUDENT_BLOB_URL": str(folder / "blobs"),
            "STUDENT_RUNS_DIR": str(self.runs),
            "STUDENT_DRAIN_S": "1",
            **{f"STUDENT_{name.upper()}": value for name, value in settings.items()},
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "services.student"],
            env={**os.environ, **env},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().split()[1]
        self.channel = grpc.insecure_channel(self.address)
        self.stub = student_pb2_grpc.StudentServiceStub(self.channel)

    def train(self, request: student_pb2.TrainRequest) -> list[student_pb2.TrainResponse]:
        return list(self.stub.Train(request, timeout=240))

    def student(self, request: student_pb2.TrainRequest) -> student_pb2.StudentRef:
        last = self.train(request)[-1]
        assert last.HasField("result"), last.error.message
        return last.result.concept.student

    def workers(self) -> list[int]:
        """Process ids of the training children, whose parent is the service's fork server."""
        return [pid for child in children(self.process.pid) for pid in children(child)]

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.close()

    def close(self) -> None:
        self.channel.close()
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(30)
        if self.process.stdout is not None:
            self.process.stdout.close()


@contextlib.contextmanager
def service(folder: Path, **settings: str) -> Iterator[Service]:
    running = Service(folder, **settings)
    try:
        yield running
    finally:
        running.close()


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for path in found for child in path.read_text().split()]


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def alive(pid: int) -> bool:
    """Whether the process still runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition, timeout_s: float = 60.0) -> None:
    until_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until_s, "nothing happened in time"
        time.sleep(0.02)


def violations(error: grpc.RpcError) -> list[str]:
    """Fields that a refused call names."""
    status = rpc_status.from_call(error)
    detail = error_details_pb2.BadRequest()
    packed = [d for d in status.details if d.Is(detail.DESCRIPTOR)] if status else []
    for one in packed:
        one.Unpack(detail)
    return [violation.field for violation in detail.field_violations]


def status_code(status: status_pb2.Status) -> grpc.StatusCode:
    return next(code for code in grpc.StatusCode if code.value[0] == status.code)
