from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.common.blobs import BlobStore
from services.common.errors import DataLoss, InvalidInput, NotFound, from_status, is_out_of_space


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(str(tmp_path / "store"))


def test_a_blob_is_found_by_its_sha256(blobs: BlobStore) -> None:
    digest = blobs.put("default", b"pear")
    assert digest == hashlib.sha256(b"pear").hexdigest()
    assert blobs.get("default", digest) == b"pear"
    assert blobs.put("default", b"pear") == digest


def test_projects_do_not_see_each_other(blobs: BlobStore) -> None:
    digest = blobs.put("one", b"pear")
    with pytest.raises(NotFound):
        blobs.get("two", digest)
    assert not blobs.exists("two", digest)


def test_a_stream_is_stored_whole(blobs: BlobStore) -> None:
    data = bytes(range(256)) * 10_000
    digest, size = blobs.put_file("default", io.BytesIO(data))
    assert (digest, size) == (hashlib.sha256(data).hexdigest(), len(data))
    with blobs.open("default", digest) as stream:
        assert stream.read() == data


def flip(root: Path, digest: str) -> None:
    """Change one bit of a blob, as a disk may."""
    (found,) = (path for path in root.rglob(digest) if path.parent.name == digest[:2])
    data = bytearray(found.read_bytes())
    data[len(data) // 2] ^= 4
    found.write_bytes(data)


READERS: dict[str, Callable[[BlobStore, str], object]] = {
    "get": lambda blobs, digest: blobs.get("default", digest),
    "whole": lambda blobs, digest: blobs.open("default", digest).read(),
    "pieces": lambda blobs, digest: shutil.copyfileobj(
        blobs.open("default", digest), io.BytesIO(), 7
    ),
    "buffered": lambda blobs, digest: io.BufferedReader(blobs.open("default", digest)).read(),
    "check": lambda blobs, digest: blobs.check("default", digest),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_flipped_bit_is_found_on_read_told_to_all_and_healed(
    blobs: BlobStore, tmp_path: Path, reader: str
) -> None:
    data = bytes(range(200))
    digest = blobs.put("default", data)
    assert READERS[reader](blobs, digest) in (data, None, len(data))
    flip(tmp_path, digest)
    for _ in range(2):
        with pytest.raises(DataLoss, match=f"{digest}.*damaged") as caught:
            READERS[reader](blobs, digest)
    assert from_status(caught.value.to_status()).__class__ is DataLoss
    assert caught.value.metadata() == {"digest": digest}
    assert not blobs.exists("default", digest)
    blobs.put("default", data)
    assert READERS[reader](blobs, digest) in (data, None, len(data))
    (kept,) = tmp_path.glob("store/projects/default/quarantine/*")
    assert kept.read_bytes() != data


def test_a_seek_reads_what_is_there(blobs: BlobStore) -> None:
    digest = blobs.put("default", b"a long pear")
    with blobs.open("default", digest) as stream:
        assert (stream.read(2), stream.seek(7), stream.read(), stream.tell()) == (
            b"a ",
            7,
            b"pear",
            11,
        )


def test_storing_again_makes_a_blob_young_and_mends_one_that_was_cut(
    blobs: BlobStore, tmp_path: Path
) -> None:
    digest = blobs.put("default", b"pear")
    (found,) = tmp_path.rglob(digest)
    os.utime(found, (1, 1))
    blobs.put("default", b"pear")
    assert time.time() - found.stat().st_mtime < 60
    found.write_bytes(b"pe")
    blobs.put("default", b"pear")
    assert blobs.get("default", digest) == b"pear"


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "A" * 64, "0" * 63, "0" * 64 + "/x"])
def test_only_digests_become_paths(blobs: BlobStore, digest: str) -> None:
    with pytest.raises(InvalidInput):
        blobs.get("default", digest)


@pytest.mark.parametrize("name", ["../x", "/x", "a//b", "a/../b", "", ".hidden", "a/b/c/d/e/f/g/h"])
def test_only_plain_names_become_refs(blobs: BlobStore, name: str) -> None:
    with pytest.raises(InvalidInput):
        blobs.put_ref("default", name, b"{}")


@pytest.mark.parametrize("project", ["", "..", "a/b", "Default", "x" * 64])
def test_only_plain_projects_become_folders(blobs: BlobStore, project: str) -> None:
    with pytest.raises(InvalidInput):
        blobs.put(project, b"x")


def test_refs_are_replaced_and_listed(blobs: BlobStore) -> None:
    blobs.put_ref("default", "models/b", b"1")
    blobs.put_ref("default", "models/a", b"1")
    blobs.put_ref("default", "models/a", b"2")
    assert blobs.get_ref("default", "models/a") == b"2"
    assert list(blobs.list_refs("default", "models")) == ["a", "b"]
    assert list(blobs.list_refs("other", "models")) == []
    with pytest.raises(NotFound):
        blobs.get_ref("default", "models/c")


def test_a_full_disk_keeps_no_part_of_a_blob(
    blobs: BlobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs.put_ref("p", "models/a", b"old")

    def half(path: str, data: bytes) -> None:
        Path(path).write_bytes(data[:1])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(blobs._fs, "pipe_file", half)
        for write in (
            lambda: blobs.put("p", b"data"),
            lambda: blobs.put_ref("p", "models/a", b"new"),
        ):
            with pytest.raises(OSError, match="No space left") as caught:
                write()
            assert is_out_of_space(caught.value)
    assert blobs.get_ref("p", "models/a") == b"old"
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a"]
    assert blobs.exists("p", blobs.put("p", b"data"))


def test_a_project_is_removed_while_somebody_writes_into_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = BlobStore(str(tmp_path))
    blobs.put("p", b"first")
    late = iter([b"second", b"third"])
    remove = os.rmdir

    def slow(path: Any, **how: Any) -> None:
        if path == "blobs" and (data := next(late, None)):
            blobs.put("p", data)
        remove(path, **how)

    monkeypatch.setattr(os, "rmdir", slow)
    blobs.remove_project("p")
    assert not (tmp_path / "projects" / "p").exists()
    assert next(late, None) is None


def test_a_write_into_a_project_that_is_removed_just_now_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs, move = BlobStore(str(tmp_path)), shutil.move
    removals = iter(range(2))

    def removing(*args: Any, **how: Any) -> Any:
        if next(removals, None) is not None:
            shutil.rmtree(tmp_path / "projects" / "p")
        return move(*args, **how)

    monkeypatch.setattr(shutil, "move", removing)
    assert blobs.get("p", blobs.put("p", b"data")) == b"data"
    assert next(removals, None) is None
