"""The content-addressed blob store: immutable bytes by SHA-256, and named pointers, per project.

Layout under the root URL: `projects/{project}/blobs/{aa}/{digest}` and
`projects/{project}/refs/{name}`.
Any fsspec URL serves: a folder on one host, an S3-compatible bucket for several.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import uuid
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

import fsspec

from services.common.errors import InvalidInput, NotFound
from services.common.names import check_id

_DIGEST = re.compile(r"[0-9a-f]{64}")
_REF = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}(/[A-Za-z0-9][A-Za-z0-9._-]{0,127}){0,5}")
CHUNK_BYTES = 1 << 20


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


class BlobStore:
    """Blobs and refs of all projects under one root URL. Thread-safe; blocking, so call it off the
    loop."""

    def __init__(self, url: str) -> None:
        self._fs, root = cast("tuple[Any, str]", fsspec.core.url_to_fs(url))
        self._root = root.rstrip("/")
        self._local = "file" in (
            self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,)
        )

    def put(self, project: str, data: bytes) -> str:
        """Store `data` and return its digest; storing the same bytes again writes nothing."""
        digest = digest_of(data)
        path = self._blob(project, digest)
        if not self._fs.exists(path):
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
            target = self._blob(project, sha.hexdigest())
            self._fs.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
            self._fs.mv(temporary, target)
        finally:
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm(temporary)
        return sha.hexdigest(), size

    def get(self, project: str, digest: str) -> bytes:
        """Return a blob's bytes, verified. Raises NotFound where it is absent or does not match
        its digest."""
        try:
            data = cast("bytes", self._fs.cat_file(self._blob(project, digest)))
        except FileNotFoundError:
            raise NotFound(f"no blob {digest} in project {project}", resource=digest) from None
        if digest_of(data) != digest:
            raise NotFound(f"blob {digest} in project {project} is damaged", resource=digest)
        return data

    def exists(self, project: str, digest: str) -> bool:
        """Return whether the blob is there."""
        return bool(self._fs.exists(self._blob(project, digest)))

    def open(self, project: str, digest: str) -> BinaryIO:
        """Open a blob for reading; the caller closes it. Raises NotFound."""
        try:
            return cast("BinaryIO", self._fs.open(self._blob(project, digest), "rb"))
        except FileNotFoundError:
            raise NotFound(f"no blob {digest} in project {project}", resource=digest) from None

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
            yield from sorted(
                str(path).rsplit("/", 1)[1] for path in self._fs.ls(base, detail=False)
            )

    def stored_bytes(self, project: str) -> int:
        """Return how many bytes a project's blobs and refs are; walks through all of them."""
        self._fs.invalidate_cache()
        found = self._fs.find(self._base(project), detail=True)
        return sum(int(one["size"]) for one in found.values())

    def _write(self, path: str, data: bytes) -> None:
        folder = path.rsplit("/", 1)[0]
        self._fs.makedirs(folder, exist_ok=True)
        if not self._local:
            self._fs.pipe_file(path, data)
            return
        temporary = f"{folder}/.{uuid.uuid4().hex}"
        try:
            self._fs.pipe_file(temporary, data)
            self._fs.mv(temporary, path)
        except OSError:  # a full disk: leave it no fuller
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm(temporary)
            raise

    def _base(self, project: str) -> str:
        return f"{self._root}/projects/{check_id(project, field='project')}"

    def _blob(self, project: str, digest: str) -> str:
        return f"{self._base(project)}/blobs/{check_digest(digest)[:2]}/{digest}"

    def _ref(self, project: str, name: str) -> str:
        if not _REF.fullmatch(name):
            raise InvalidInput(f"ref {name!r} is not a valid name", field="name")
        return f"{self._base(project)}/refs/{name}"
