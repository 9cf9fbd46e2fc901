"""The content-addressed blob store: immutable bytes by SHA-256, and named pointers, per project.

Layout under the root URL, below `projects/{project}/`: `blobs/{aa}/{digest}`, `refs/{name}`, `tmp/`
for what is being written, and `quarantine/{digest}` for what was found damaged.
Any fsspec URL serves: a folder on one host, an S3-compatible bucket for several.

What is read is checked by its digest. A blob that does not have it is set aside, so that storing
the same bytes again heals it, and every reader is told DATA_LOSS until then.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import time
import uuid
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

import fsspec

from services.common.checked_stream import CheckedStream
from services.common.errors import DataLoss, InvalidInput, NotFound
from services.common.names import check_id

_DIGEST = re.compile(r"[0-9a-f]{64}")
_REF = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}(/[A-Za-z0-9][A-Za-z0-9._-]{0,127}){0,5}")
CHUNK_BYTES = 1 << 20
_TRIES = 5
"""To remove a folder into which others still write, and to write into one that is removed."""
FRESH_S = 3600.0
"""A blob in a bucket that was written longer ago is written again when somebody stores it: its age
tells the garbage collection that nobody is about to name it."""


def digest_of(data: bytes) -> str:
    """Return the lower-case hexadecimal SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def is_digest(text: str) -> bool:
    """Return whether `text` has the form of a digest."""
    return _DIGEST.fullmatch(text) is not None


def check_digest(digest: str, *, field: str = "digest") -> str:
    """Return `digest` where it is one, else raise InvalidInput. Guards every path built from it."""
    if not is_digest(digest):
        raise InvalidInput(f"{field}: not a lower-case SHA-256", field=field)
    return digest


def _written_s(about: dict[str, Any]) -> float:
    """Return when a file was written, as local files and buckets say it; the far future where
    neither does."""
    found: Any = about.get("mtime", about.get("LastModified", "inf"))
    return float(found.timestamp() if hasattr(found, "timestamp") else found)


class BlobStore:
    """Blobs and refs of all projects under one root URL. Thread-safe; blocking, so call it off the
    loop."""

    def __init__(self, url: str) -> None:
        # What a listing said goes stale: a blob that another process has removed would be taken for
        # there, and not be written.
        found = fsspec.core.url_to_fs(url, use_listings_cache=False)
        self._fs, root = cast("tuple[Any, str]", found)
        self._root = root.rstrip("/")
        self._local = "file" in (
            self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,)
        )

    def put(self, project: str, data: bytes) -> str:
        """Store `data` and return its digest; storing the same bytes again makes them young."""
        digest = digest_of(data)
        path = self._blob(project, digest)
        if not self._freshen(path, len(data)):
            self._write(path, data)
        return digest

    def put_file(self, project: str, stream: BinaryIO) -> tuple[str, int]:
        """Store a stream of any length without holding it in memory; return (digest, size in
        bytes)."""
        sha, size = hashlib.sha256(), 0
        temporary = f"{self._base(project)}/tmp/{uuid.uuid4().hex}"
        self._fs.makedirs(f"{self._base(project)}/tmp", exist_ok=True)
        try:
            with self._fs.open(temporary, "wb") as out:
                while chunk := stream.read(CHUNK_BYTES):
                    sha.update(chunk)
                    size += len(chunk)
                    out.write(chunk)
            self._move(temporary, self._blob(project, sha.hexdigest()))
        finally:
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm(temporary)
        return sha.hexdigest(), size

    def get(self, project: str, digest: str) -> bytes:
        """Return a blob's bytes, verified. Raises NotFound where it is absent, DataLoss where its
        bytes are damaged."""
        path = self._blob(project, digest)
        for _ in range(2):  # a second look: what was wrong may have been memory, or the wire
            try:
                data = cast("bytes", self._fs.cat_file(path))
            except FileNotFoundError:
                raise self._absent(project, digest) from None
            if digest_of(data) == digest:
                return data
        self.set_aside(project, digest)
        raise self._absent(project, digest)

    def exists(self, project: str, digest: str) -> bool:
        """Return whether the blob is there."""
        return bool(self._fs.exists(self._blob(project, digest)))

    def open(self, project: str, digest: str) -> BinaryIO:
        """Open a blob for reading; the caller closes it. Raises NotFound, DataLoss.

        A reader that goes from start to end gets DataLoss at the end of damaged bytes; one that
        seeks calls `check` before.
        """
        try:
            file = self._fs.open(self._blob(project, digest), "rb")
        except FileNotFoundError:
            raise self._absent(project, digest) from None
        return cast("BinaryIO", CheckedStream(file, digest, lambda: self.check(project, digest)))

    def check(self, project: str, digest: str) -> int:
        """Read a blob through and return its size in bytes. Raises NotFound, DataLoss."""
        for _ in range(2):
            try:
                with self._fs.open(self._blob(project, digest), "rb") as file:
                    if hashlib.file_digest(file, "sha256").hexdigest() == digest:
                        return int(file.tell())
            except FileNotFoundError:
                raise self._absent(project, digest) from None
        self.set_aside(project, digest)
        raise self._absent(project, digest)

    def set_aside(self, project: str, digest: str) -> None:
        """Move a damaged blob into quarantine, where its readers are told of it."""
        path, aside = self._blob(project, digest), self._aside(project, digest)
        with contextlib.suppress(FileNotFoundError):  # somebody else was first
            self._move(path, aside)
            if self._local:
                os.utime(aside)

    def put_ref(self, project: str, name: str, data: bytes) -> None:
        """Point `name` at `data` (small JSON), atomically replacing what was there."""
        self._write(self._ref(project, name), data)

    def get_ref(self, project: str, name: str) -> bytes:
        """Return what `name` points at. Raises NotFound."""
        try:
            return cast("bytes", self._fs.cat_file(self._ref(project, name)))
        except FileNotFoundError:
            raise NotFound(f"no {name} in project {project}", resource=name) from None

    def list_refs(self, project: str, folder: str) -> Iterator[str]:
        """Yield names of the refs directly under `folder`, sorted."""
        base = self._ref(project, folder)
        self._fs.invalidate_cache()
        if self._fs.exists(base):
            names = (str(path).rsplit("/", 1)[1] for path in self._fs.ls(base, detail=False))
            yield from sorted(name for name in names if not name.startswith("."))

    def _absent(self, project: str, digest: str) -> NotFound:
        if not self._fs.exists(self._aside(project, digest)):
            return NotFound(f"no blob {digest} in project {project}", resource=digest)
        return DataLoss(
            f"blob {digest} in project {project} is damaged and lies in quarantine; what can be "
            "computed again is, at its next use, and `stillhouse fsck` repairs what it can",
            resource=digest,
        )

    def _freshen(self, path: str, size: int) -> bool:
        """Return whether a blob need not be written, because it is there, and young from now on."""
        try:
            if not self._local:
                age_s = time.time() - self._fs.modified(path).timestamp()
                return bool(age_s < FRESH_S and self._fs.size(path) == size)
            os.utime(path)
            return os.stat(path).st_size == size
        except FileNotFoundError:
            return False
        except PermissionError:  # another user's, who owns the store
            return bool(self._fs.exists(path))

    def projects(self) -> list[str]:
        """Return the projects that hold anything."""
        base = f"{self._root}/projects"
        self._fs.invalidate_cache()
        if not self._fs.exists(base):
            return []
        return sorted(
            str(one).rstrip("/").rsplit("/", 1)[1] for one in self._fs.ls(base, detail=False)
        )

    def count(self, project: str) -> dict[str, int]:
        """Return how many files of a project there are: `blobs`, `refs`, `other files`."""
        base = self._base(project)
        self._fs.invalidate_cache()
        found = {"blobs": 0, "refs": 0, "other files": 0}
        for path in self._fs.find(base) if self._fs.exists(base) else ():
            kind = str(path).partition(f"/projects/{project}/")[2].partition("/")[0]
            found[kind if kind in found else "other files"] += 1
        return found

    def remove_project(self, project: str) -> None:
        """Remove all that a project holds. Safe to repeat."""
        base = self._base(project)
        for left in reversed(range(_TRIES)):
            self._fs.invalidate_cache()
            try:
                if self._fs.exists(base):
                    self._fs.rm(base, recursive=True)
                return
            except FileNotFoundError:
                continue
            except OSError as error:  # somebody has just stored something in a folder that goes
                if error.errno != errno.ENOTEMPTY or not left:
                    raise

    def old_refs(self, project: str, folder: str, before_s: float) -> list[str]:
        """Return names of the refs anywhere under `folder` that were last written before a time."""
        base = self._ref(project, folder)
        self._fs.invalidate_cache()
        if not self._fs.exists(base):
            return []
        found = self._fs.find(base, detail=True)
        start = len(f"{self._base(project)}/refs/")
        return [path[start:] for path, about in found.items() if _written_s(about) < before_s]

    def remove_ref(self, project: str, name: str) -> None:
        """Remove a ref; the blobs it named stay. Safe to repeat."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm(self._ref(project, name))

    def stored_bytes(self, project: str) -> int:
        """Return how many bytes a project's blobs and refs are; walks through all of them."""
        self._fs.invalidate_cache()
        found = self._fs.find(self._base(project), detail=True)
        return sum(int(one["size"]) for one in found.values())

    def _write(self, path: str, data: bytes) -> None:
        if not self._local:
            self._fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
            self._fs.pipe_file(path, data)
            return
        for left in reversed(range(_TRIES)):
            try:
                self._write_file(path, data)
                return
            except FileNotFoundError:  # the project's folder was removed meanwhile
                if not left:
                    raise

    def _write_file(self, path: str, data: bytes) -> None:
        folder = path.rsplit("/", 1)[0]
        self._fs.makedirs(folder, exist_ok=True)
        temporary = f"{folder}/.{uuid.uuid4().hex}"
        try:
            self._fs.pipe_file(temporary, data)
            self._fs.mv(temporary, path)
        except OSError:  # a full disk: leave it no fuller
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm(temporary)
            raise

    def _move(self, path: str, target: str) -> None:
        self._fs.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
        self._fs.mv(path, target)

    def _base(self, project: str) -> str:
        return f"{self._root}/projects/{check_id(project, field='project')}"

    def _blob(self, project: str, digest: str) -> str:
        return f"{self._base(project)}/blobs/{check_digest(digest)[:2]}/{digest}"

    def _aside(self, project: str, digest: str) -> str:
        return f"{self._base(project)}/quarantine/{check_digest(digest)}"

    def _ref(self, project: str, name: str) -> str:
        if not _REF.fullmatch(name):
            raise InvalidInput(f"ref {name!r} is not a valid name", field="name")
        return f"{self._base(project)}/refs/{name}"
