"""A full disk: whatever is written then, the run ends by saying so, and nothing is half there."""

from __future__ import annotations

import errno
from pathlib import Path

import fsspec
import pytest
import torch
from fsspec.implementations.local import LocalFileSystem
from google.rpc import code_pb2
from safetensors import SafetensorError
from stillhouse.student.v1 import student_pb2

from services.common.blobs import BlobStore
from services.common.errors import OutOfSpace, from_status, is_out_of_space
from services.student.recipes import Surroundings
from services.student.rundir import RunDir, Writer
from services.student.worker import Assignment, work
from tests.student import language_suite as suite

SAFETENSORS = "Error while serializing: I/O error: No space left on device (os error 28)"
"""What safetensors 0.8 says on a full tmpfs."""


class FullDisk(LocalFileSystem):
    """A folder on a disk that has no room for more."""

    protocol = "full"
    is_full = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("full://"))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **more: object) -> None:
        self._check()
        super().pipe_file(path, value, mode=mode, **more)

    def open(self, path: str, mode: str = "rb", **more: object) -> object:
        if "w" in mode:
            self._check()
        return super().open(path, mode, **more)

    def _check(self) -> None:
        if FullDisk.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def full(monkeypatch):
    """Call it to fill the disk of `full:` addresses."""
    fsspec.register_implementation("full", FullDisk, clobber=True)
    monkeypatch.setattr(FullDisk, "is_full", False)
    return lambda: monkeypatch.setattr(FullDisk, "is_full", True)


def assignment(
    home: Path, url: str, request: student_pb2.TrainRequest
) -> tuple[RunDir, Assignment]:
    folder = RunDir.of(home / "runs", suite.PROJECT, request.run_id)
    folder.create(request)
    catalogue = home / "catalogue.toml"
    around = Surroundings(
        cache_dir=home / "cache",
        catalogue=catalogue if catalogue.exists() else suite.make_catalogue(home),
    )
    writer = folder.next_writer()
    return folder, Assignment(folder.path, writer.epoch, url, 1, around, "INFO", False)


def test_a_run_on_a_full_disk_says_so_and_goes_on_when_there_is_room(tmp_path, full, monkeypatch):
    url = f"full://{tmp_path}/blobs"
    monkeypatch.setattr("signal.signal", lambda *_: None)
    texts = suite.put_records(BlobStore(url), suite.texts())
    request = suite.request("full", text_shards=[texts], training=suite.training(max_steps=3))
    folder, assigned = assignment(tmp_path, url, request)
    full()
    assert work(assigned, lambda: None) == 0
    status = folder.outcome().error
    assert status.code == code_pb2.RESOURCE_EXHAUSTED
    error = from_status(status)
    assert isinstance(error, OutOfSpace)
    assert "make room and start the job again" in error.message
    assert [path for path in tmp_path.glob("blobs/**/*") if path.is_file()] == [
        path for path in tmp_path.glob(f"blobs/**/{texts.digest}")
    ]
    monkeypatch.setattr(FullDisk, "is_full", False)
    folder, assigned = assignment(tmp_path, url, request)
    assert work(assigned, lambda: None) == 0
    assert folder.outcome().result.language.weights_digest
    trained = [one for one in folder.events()[0] if one.progress.metrics]
    steps = [one.progress.done for one in trained]
    assert steps == sorted(set(steps))  # the second worker took no step anew


def test_a_checkpoint_that_finds_no_room_leaves_none(tmp_path):
    folder = RunDir.of(tmp_path, suite.PROJECT, "run")
    folder.create(student_pb2.TrainRequest(project=suite.PROJECT, run_id="run"))
    writer = folder.next_writer()
    writer.save_folder("training", 1, lambda path: (path / "a").write_bytes(b"a"))

    def fill(path: Path) -> None:
        (path / "b").write_bytes(b"b")
        raise SafetensorError(SAFETENSORS)

    with pytest.raises(SafetensorError) as caught:
        writer.save_folder("training", 2, fill)
    assert is_out_of_space(caught.value)
    assert not is_out_of_space(SafetensorError("Error while deserializing: HeaderTooLarge"))
    assert not is_out_of_space(OSError(errno.ENOENT, "No such file"))
    assert [path.name for path in (folder.path / "checkpoint").iterdir()] == ["training.0000000001"]


def test_a_small_file_that_finds_no_room_leaves_none(tmp_path, monkeypatch):
    folder = RunDir.of(tmp_path, suite.PROJECT, "run")
    folder.create(student_pb2.TrainRequest(project=suite.PROJECT, run_id="run"))
    writer = folder.next_writer()
    before = sorted(path.name for path in folder.path.iterdir())

    def no_room(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", no_room)
    with pytest.raises(OSError, match="No space left"):
        Writer(folder, writer.epoch).finish(student_pb2.TrainResult())
    assert sorted(path.name for path in folder.path.iterdir()) == before
    assert folder.outcome() is None
