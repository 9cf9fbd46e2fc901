"""Unpack chosen members of a wheel or tarball, trusting nothing in it.

Only regular files with plain relative names come out; links, devices, absolute names and ``..`` are
errors, and the number of files and the unpacked bytes are bounded by what is really read, not by
what a header says.
"""

from __future__ import annotations

import errno
import gzip
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

MAX_FILES = 20_000
MAX_UNPACKED_BYTES = 8 << 30
_CHUNK = 1 << 20
_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    RuntimeError,  # zipfile's answer to an encrypted member or an unknown method
    ValueError,  # a name that is no text, a place before the start
    OverflowError,
)
_IMPOSSIBLE = (errno.EINVAL, errno.ENAMETOOLONG, errno.ENOTDIR)
"""The system's answers to a place or a name that only a damaged or hostile archive asks for."""


class ArchiveError(ValueError):
    """The archive is damaged, unsafe, too large, or lacks the member asked for."""


def is_damage(error: Exception) -> bool:
    """Whether an error that came of reading an archive says that its bytes are at fault."""
    if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
        return error.errno in _IMPOSSIBLE or "Invalid data stream" in str(error)  # bz2's alone
    return isinstance(error, _DAMAGED)


def safe_name(name: str) -> PurePosixPath:
    """The member's name as a relative path. Raises ArchiveError for one that could leave the
    folder.
    """
    path = PurePosixPath(name)
    bad = path.is_absolute() or ".." in path.parts or not path.parts
    if bad or "\\" in name or "\0" in name or ":" in path.parts[0]:
        raise ArchiveError(f"unsafe member name {name!r}")
    return path


def _wanted(name: str, member: str) -> bool:
    if not member:
        return True
    return name.startswith(member) if member.endswith("/") else name == member


def _zip_members(path: Path, member: str) -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.is_dir() or not _wanted(info.filename, member):
                continue
            with archive.open(info) as file:
                yield info.filename, file


def _tar_members(path: Path, member: str) -> Iterator[tuple[str, IO[bytes]]]:
    with tarfile.open(path, mode="r:*") as archive:
        for info in archive:
            name = info.name.removeprefix("./")
            if info.isdir() or not _wanted(name, member):
                continue
            file = archive.extractfile(info) if info.isreg() else None
            if file is None:
                raise ArchiveError(f"member {name!r} is not a regular file")
            with file:
                yield name, file


def _copy(source: IO[bytes], target: Path, budget: int) -> int:
    target.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with target.open("xb") as out:
        while chunk := source.read(_CHUNK):
            written += len(chunk)
            if written > budget:
                raise ArchiveError("the archive unpacks to more than the limit")
            out.write(chunk)
    return written


def unpack(
    path: Path,
    folder: Path,
    member: str = "",
    *,
    max_bytes: int = MAX_UNPACKED_BYTES,
    max_files: int = MAX_FILES,
) -> list[str]:
    """Unpack ``member`` (a file, a ``folder/``, or everything when empty) below ``folder``.

    Zip (so wheels) and tar in any compression are told apart by content. Returns the names written,
    sorted. Raises ArchiveError; what was written until then is the caller's to remove.
    """
    read = _zip_members if zipfile.is_zipfile(path) else _tar_members
    names: list[str] = []
    left = max_bytes
    try:
        for name, file in read(path, member):
            if len(names) >= max_files:
                raise ArchiveError(f"the archive holds more than {max_files} files")
            left -= _copy(file, folder / safe_name(name), left)
            names.append(name)
    except ArchiveError:
        raise
    except FileExistsError as error:
        raise ArchiveError(f"the archive names {error.filename!r} twice") from error
    except Exception as error:
        if not is_damage(error):
            raise
        raise ArchiveError(f"the archive is damaged: {error}") from error
    if not names:
        raise ArchiveError(f"the archive holds no {member!r}" if member else "the archive is empty")
    return sorted(names)
