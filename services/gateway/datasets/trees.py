"""Trees of files: a folder anywhere fsspec reaches, a zip or a tar archive, read member by member.

Nothing is unpacked to disk. Names are checked, reads are bounded by what is really read rather
than by what a
header says, and links are refused.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import struct
import tarfile
import zipfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, Protocol, TypeAlias, cast

import fsspec

from services.common.archive import ArchiveError, is_damage, safe_name
from services.common.errors import InvalidInput
from services.gateway.datasets.entries import MAX_ITEMS, Rejected, shown

MAX_UNPACKED_BYTES = 64 << 30
MAX_SINGLE_READ_BYTES = 64 << 20
MAX_DIRECTORY_BYTES = 256 << 20
_CHUNK = 1 << 20
_AT_ONCE = 16


Read: TypeAlias = tuple[str, bytes | Rejected]


class Tree(Protocol):
    """Files by relative path."""

    def names(self) -> tuple[list[str], list[Rejected]]:
        """Return the paths of regular files, in a stable order, and what was refused."""
        ...

    def read(self, wanted: Collection[str], max_bytes: int) -> Iterator[Read]:
        """Yield (path, bytes or why not) of the wanted files in stored order."""
        ...

    def streams(self, wanted: Collection[str]) -> Iterator[tuple[str, BinaryIO]]:
        """Yield (path, stream) of the wanted files in stored order; a stream is good until the
        next."""
        ...


def read_one(tree: Tree, path: str, max_bytes: int) -> bytes:
    """Return one file's bytes. Raises InvalidInput where it is absent or too large."""
    for _, data in tree.read({path}, max_bytes):
        if isinstance(data, bytes):
            return data
        raise InvalidInput(f"{data.path}: {data.reason}", field="source")
    raise InvalidInput(f"{shown(path)} cannot be read", field="source")


class FolderTree:
    """A folder. `confine` is a local folder that no file may lead out of, links included."""

    def __init__(self, url: str, confine: Path | None = None) -> None:
        self._fs, root = cast("tuple[Any, str]", fsspec.core.url_to_fs(url))
        self._root = root.rstrip("/")
        self._local = "file" in (
            self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,)
        )
        self._confine = confine.resolve() if confine else None

    def names(self) -> tuple[list[str], list[Rejected]]:
        names, rejected = [], []
        for name in sorted(self._walk() if self._local else self._find()):
            if self._leads_out(name):
                rejected.append(Rejected(shown(name), "a link that leads out of the folder"))
            else:
                names.append(name)
            _check_count(len(names))
        return names, rejected

    def read(self, wanted: Collection[str], max_bytes: int) -> Iterator[Read]:
        names = sorted(wanted)
        for at in range(0, len(names), _AT_ONCE):
            part = names[at : at + _AT_ONCE]
            paths = [f"{self._root}/{name}" for name in part]
            found = self._fs.cat_ranges(  # all at once where the file system can
                paths, [0] * len(part), [max_bytes + 1] * len(part), on_error="return"
            )
            for name, data in zip(part, found, strict=True):
                yield name, _unreadable(name, data) or _bounded(name, data, max_bytes)

    def streams(self, wanted: Collection[str]) -> Iterator[tuple[str, BinaryIO]]:
        for name in sorted(wanted):
            with self._fs.open(f"{self._root}/{name}", "rb") as file:
                yield name, cast("BinaryIO", file)

    def _walk(self) -> Iterator[str]:
        for folder, folders, files in os.walk(self._root):
            folders.sort()
            for file in files:
                path = os.path.join(folder, file)
                if os.path.isfile(path):
                    yield os.path.relpath(path, self._root).replace(os.sep, "/")

    def _find(self) -> Iterator[str]:
        for path in self._fs.find(self._root):
            yield str(path).removeprefix(self._root).lstrip("/")

    def _leads_out(self, name: str) -> bool:
        if self._confine is None:
            return False
        return not Path(self._root, name).resolve().is_relative_to(self._confine)


class ZipTree:
    """A zip archive; `open_file` opens a seekable stream of it."""

    def __init__(self, open_file: Callable[[], BinaryIO]) -> None:
        self._open = open_file

    def names(self) -> tuple[list[str], list[Rejected]]:
        names: dict[str, None] = {}
        rejected: list[Rejected] = []
        with self._open() as file, _damage(), _zip(file) as archive:
            for info in archive.infolist():
                if not info.is_dir():
                    kind = "" if (info.external_attr >> 28) in (0, 8) else "a link or a device"
                    _admit(info.filename, kind, names, rejected)
        return list(names), rejected

    def read(self, wanted: Collection[str], max_bytes: int) -> Iterator[Read]:
        budget, left = MAX_UNPACKED_BYTES, set(wanted)
        with self._open() as file, _damage(), _zip(file) as archive:
            for info in archive.infolist():
                if info.filename not in left:
                    continue
                left.discard(info.filename)
                data = _member(archive, info, max_bytes)
                budget -= len(data)
                if budget < 0:
                    raise ArchiveError("it unpacks to more than the limit")
                yield info.filename, _bounded(info.filename, data, max_bytes)

    def streams(self, wanted: Collection[str]) -> Iterator[tuple[str, BinaryIO]]:
        budget, left = _Budget(), set(wanted)
        with self._open() as file, _damage(), _zip(file) as archive:
            for info in archive.infolist():
                if info.filename in left:
                    left.discard(info.filename)
                    with archive.open(info) as member:
                        yield info.filename, cast("BinaryIO", _Counted(member, budget))


class TarTree:
    """A tar archive, plain or compressed by gzip, bzip2 or xz; read as one stream."""

    def __init__(self, open_file: Callable[[], BinaryIO]) -> None:
        self._open = open_file

    def names(self) -> tuple[list[str], list[Rejected]]:
        names: dict[str, None] = {}
        rejected: list[Rejected] = []
        with self._open() as file, _damage(), _tar(file) as archive:
            for info in archive:
                if not info.isdir():
                    kind = "" if info.isreg() else "a link or a device"
                    _admit(info.name.removeprefix("./"), kind, names, rejected)
        return list(names), rejected

    def read(self, wanted: Collection[str], max_bytes: int) -> Iterator[Read]:
        left = set(wanted)
        with self._open() as file, _damage(), _tar(file) as archive:
            for info in archive:
                name = info.name.removeprefix("./")
                if name not in left or not info.isreg():
                    continue
                left.discard(name)
                member = archive.extractfile(info) if info.size <= max_bytes else None
                yield name, member.read() if member else _too_large(name, max_bytes)

    def streams(self, wanted: Collection[str]) -> Iterator[tuple[str, BinaryIO]]:
        budget, left = _Budget(), set(wanted)
        with self._open() as file, _damage(), _tar(file) as archive:
            for info in archive:
                name = info.name.removeprefix("./")
                member = archive.extractfile(info) if name in left and info.isreg() else None
                if member is not None:
                    left.discard(name)
                    yield name, cast("BinaryIO", _Counted(member, budget))


def archive_tree(open_file: Callable[[], BinaryIO]) -> Tree:
    """Return the tree of an archive, its kind told by content. Raises InvalidInput for another."""
    with open_file() as file:
        head = file.read(512)
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return ZipTree(open_file)
    if _decompressor(head) or head[257:262] == b"ustar":
        return TarTree(open_file)
    raise InvalidInput("the archive is neither zip nor tar (.gz, .bz2, .xz)", field="archive")


def _admit(name: str, kind: str, names: dict[str, None], rejected: list[Rejected]) -> None:
    """Add a member's name, or say why not."""
    try:
        safe_name(name)
        problem = kind or ("its name occurs twice" if name in names else "")
    except ArchiveError:
        problem = "its name leads out of the archive"
    if problem:
        rejected.append(Rejected(shown(name), problem))
    else:
        names[name] = None
    _check_count(len(names) + len(rejected))


def _check_count(count: int) -> None:
    if count > 2 * MAX_ITEMS:
        raise InvalidInput(f"the source holds more than {2 * MAX_ITEMS:,} files", field="source")


def _bounded(name: str, data: bytes, max_bytes: int) -> bytes | Rejected:
    return data if len(data) <= max_bytes else _too_large(name, max_bytes)


def _too_large(name: str, max_bytes: int) -> Rejected:
    return Rejected(shown(name), f"larger than {max_bytes:,} bytes")


def _unreadable(name: str, data: bytes | Exception) -> Rejected | None:
    if isinstance(data, Exception):
        return Rejected(shown(name), f"cannot be read: {shown(str(data))}")
    return None


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, max_bytes: int) -> bytes:
    """At most one byte more than the limit, whatever the archive's directory says."""
    with archive.open(info) as member:
        return member.read(max_bytes + 1)


@contextmanager
def _damage() -> Iterator[None]:
    """Turn what damaged archives raise into InvalidInput."""
    try:
        yield
    except Exception as error:
        if not is_damage(error):
            raise
        message = f"the archive is damaged or unsafe: {shown(str(error))}"
        raise InvalidInput(message, field="archive") from error


def _zip(file: BinaryIO) -> zipfile.ZipFile:
    """Open a zip whose directory is of a sane size: Python reads all of it into memory."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 66_000))
    tail = file.read()
    end = tail.rfind(b"PK\x05\x06")
    directory = struct.unpack_from("<I", tail, end + 12)[0] if 0 <= end <= len(tail) - 22 else 0
    if directory == 0xFFFFFFFF and (end := tail.rfind(b"PK\x06\x06")) >= 0:
        directory = struct.unpack_from("<Q", tail, end + 40)[0]
    if directory > MAX_DIRECTORY_BYTES:
        raise ArchiveError("its directory is larger than the limit")
    file.seek(0)
    return zipfile.ZipFile(file)


def _tar(file: BinaryIO) -> tarfile.TarFile:
    head = file.read(512)
    file.seek(0)
    unpack = _decompressor(head)
    stream = cast("BinaryIO", unpack(file)) if unpack else file
    return tarfile.open(fileobj=cast("IO[bytes]", _Forward(stream)), mode="r:")


def _decompressor(head: bytes) -> Callable[[BinaryIO], Any] | None:
    if head[:2] == b"\x1f\x8b":
        return lambda file: gzip.GzipFile(fileobj=file)
    if head[:3] == b"BZh":
        return bz2.BZ2File
    if head[:6] == b"\xfd7zXZ\x00":
        return lzma.LZMAFile
    return None


@dataclass
class _Budget:
    """Bytes that an archive may still unpack to."""

    left: int = MAX_UNPACKED_BYTES


class _Counted:
    """A member's stream, read forward only, whose bytes count against the archive's budget."""

    def __init__(self, member: IO[bytes], budget: _Budget) -> None:
        self._member, self._budget = member, budget

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes. Raises InvalidInput over the budget and where it is damaged."""
        with _damage():
            data = self._member.read(min(size, _CHUNK) if size >= 0 else _CHUNK)
            self._budget.left -= len(data)
            if self._budget.left < 0:
                raise ArchiveError("it unpacks to more than the limit")
        return data

    def seekable(self) -> bool:
        """Return False: a bomb must run into the budget."""
        return False


class _Forward:
    """A stream that only goes forward and counts what it gives, so that a bomb runs into a
    limit."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._at = 0

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes. Raises ArchiveError over the limits."""
        if not 0 <= size <= MAX_SINGLE_READ_BYTES:
            raise ArchiveError("a header of it is larger than the limit")
        parts: list[bytes] = []
        while size > 0 and (part := self._stream.read(size)):
            parts.append(part)
            size -= len(part)
        data = b"".join(parts)
        self._at += len(data)
        if self._at > MAX_UNPACKED_BYTES:
            raise ArchiveError("it unpacks to more than the limit")
        return data

    def tell(self) -> int:
        """Return the position in the unpacked stream, in bytes."""
        return self._at

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        """Skip forward to `position`."""
        if whence != os.SEEK_SET or position < self._at:
            raise ArchiveError("its members are out of order")
        while self._at < position and self.read(min(_CHUNK, position - self._at)):
            continue
        return self._at

    def close(self) -> None:
        """Close nothing; the opener closes the file."""
