"""A folder, file or archive as a stream of tar bytes, without a copy on disk."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

from stillhouse_client.errors import InvalidRequest

CHUNK_BYTES = 1 << 20
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
Progress = Callable[[int, int], None]


def is_archive(path: Path) -> bool:
    """Return whether `path` is named as an archive that the gateway unpacks."""
    return path.name.lower().endswith(ARCHIVES)


def source_bytes(path: Path) -> int:
    """Return the bytes of the files under `path`: the total that progress counts towards."""
    return sum(f.stat().st_size for f in _files(path))


def chunks(path: Path, progress: Progress | None = None) -> Iterator[bytes]:
    """Yield `path` as upload chunks of at most 1 MiB: archives as they are, all else as tar.

    Links are left out: what they point to may lie outside the folder. Raises InvalidRequest where
    nothing is there.
    """
    if not path.exists():
        raise InvalidRequest(f"{path} does not exist", hint="give a folder, an archive or a URI")
    total, sent = source_bytes(path), 0
    pieces = _read(path) if path.is_file() and is_archive(path) else _tar(path)
    for piece in pieces:
        sent += len(piece)
        if progress is not None:
            progress(min(sent, total), total)
        yield piece


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(p for p in path.rglob("*") if p.is_file() and not p.is_symlink())


def _read(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(CHUNK_BYTES):
            yield piece


def _tar(path: Path) -> Iterator[bytes]:
    base = path if path.is_dir() else path.parent
    for file in _files(path):
        size = file.stat().st_size
        member = tarfile.TarInfo(file.relative_to(base).as_posix())
        member.size = size
        yield member.tobuf(tarfile.PAX_FORMAT)
        yield from _exactly(file, size)
        yield bytes(-size % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _exactly(file: Path, size: int) -> Iterator[bytes]:
    left = size
    with file.open("rb") as content:
        while left and (piece := content.read(min(left, CHUNK_BYTES))):
            left -= len(piece)
            yield piece
    if left:
        raise InvalidRequest(f"{file} became shorter while it was read")
