"""All that lies in a blob store, for those who look after it: checking, collecting, copying."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from services.common.blobs import CHUNK_BYTES, BlobStore, is_digest

_CONDEMNED = "condemned-"
_LOCK = "keeping.lock"


@dataclass(frozen=True)
class Kept:
    """A file of the store. `name` is a blob's digest, a ref's name, or a path below the project."""

    project: str
    name: str
    size: int
    modified: float
    """Seconds since 1970."""


class Shelf(BlobStore):
    """A blob store that can be listed, and whose blobs can be taken away."""

    @property
    def root(self) -> str:
        """Where it lies, as its file system spells it."""
        return self._root

    @property
    def is_folder(self) -> bool:
        """Whether it lies in a folder, and not in a bucket."""
        return self._local

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """In a folder let one at a time in, for the moment of a look and a write. Processes that
        end let go. In a bucket it does nothing."""
        if not self._local:
            yield
            return
        os.makedirs(self._root, exist_ok=True)
        with open(f"{self._root}/{_LOCK}", "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def projects(self) -> list[str]:
        """Return the projects that have anything here, sorted."""
        return sorted(self._names(f"{self._root}/projects"))

    def blobs(self, project: str, *, after: str = "") -> Iterator[Kept]:
        """Yield a project's blobs in the order of their digests, those after `after` alone."""
        base = f"{self._base(project)}/blobs"
        for prefix in sorted(self._names(base)):
            if prefix >= after[:2]:
                found = self._files(f"{base}/{prefix}")
                names = sorted(name for name in found if is_digest(name) and name > after)
                yield from (_kept(project, name, found[name]) for name in names)

    def refs(self, project: str) -> list[Kept]:
        """Return all refs of a project, sorted by name."""
        base = f"{self._base(project)}/refs"
        found = {path.removeprefix(f"{base}/"): info for path, info in self._below(base)}
        return [
            _kept(project, name, info)
            for name, info in sorted(found.items())
            if not name.rsplit("/", 1)[-1].startswith(".")
        ]

    def leftovers(self, project: str) -> list[Kept]:
        """Return what writers have begun: files in `tmp/`, and hidden ones beside blobs and
        refs."""
        base = self._base(project)
        found = []
        for path, info in self._below(base):
            name = path.removeprefix(f"{base}/")
            if name.startswith("tmp/") or name.rsplit("/", 1)[-1].startswith("."):
                found.append(_kept(project, name, info))
        return found

    def quarantine(self, project: str) -> list[Kept]:
        """Return the damaged blobs that were set aside."""
        found = self._files(f"{self._base(project)}/quarantine")
        return [_kept(project, name, info) for name, info in sorted(found.items())]

    def remove_file(self, kept: Kept, folder: str = "") -> None:
        """Delete a leftover, or, with `folder="quarantine"`, what was set aside."""
        with contextlib.suppress(FileNotFoundError):
            below = f"{folder}/{kept.name}" if folder else kept.name
            self._fs.rm_file(f"{self._base(kept.project)}/{below}")

    def remove_ref(self, project: str, name: str) -> None:
        """Delete a ref; one that is gone already is no error."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._ref(project, name))

    def head(self, project: str, digest: str) -> bytes:
        """Return a blob's first byte, unchecked. Raises NotFound, DataLoss."""
        try:
            return bytes(self._fs.cat_file(self._blob(project, digest), start=0, end=1))
        except FileNotFoundError:
            raise self._absent(project, digest) from None

    def make_young(self, project: str, digest: str) -> None:
        """Let a blob's age begin anew."""
        path = self._blob(project, digest)
        with contextlib.suppress(FileNotFoundError):
            if self._local:
                os.utime(path)
            else:
                self._fs.pipe_file(path, self._fs.cat_file(path))

    def remove(self, project: str, digest: str, *, older_than: float) -> bool:
        """Delete a blob unless it was stored again since `older_than`; return whether it went.

        In a folder it is taken out of the way before its age is looked at: whoever stores it again
        has either made it young before, which is seen, or does not find it and writes it.
        """
        path = self._blob(project, digest)
        try:
            if not self._local:
                if self._fs.modified(path).timestamp() > older_than:
                    return False
                self._fs.rm_file(path)
                return True
            aside = f"{self._base(project)}/tmp/{_CONDEMNED}{digest}"
            os.makedirs(os.path.dirname(aside), exist_ok=True)
            os.rename(path, aside)
            if os.stat(aside).st_mtime > older_than:
                os.rename(aside, path)
                return False
            os.unlink(aside)
        except FileNotFoundError:  # it has gone already, or somebody has put it back
            return False
        return True

    def recover(self) -> None:
        """Put back what a collection that was killed had taken out of the way."""
        for project in self.projects() if self._local else []:
            folder = f"{self._base(project)}/tmp"
            for name in self._names(folder):
                digest = name.removeprefix(_CONDEMNED)
                if name.startswith(_CONDEMNED) and not self.exists(project, digest):
                    with contextlib.suppress(FileNotFoundError):
                        os.rename(f"{folder}/{name}", self._blob(project, digest))

    def listed(self, folder: str) -> list[str]:
        """Return the names in a folder below the root, sorted."""
        return sorted(self._names(f"{self._root}/{folder}"))

    def read_file(self, name: str) -> bytes | None:
        """Return a file below the root, by its path; None where there is none."""
        try:
            return bytes(self._fs.cat_file(f"{self._root}/{name}"))
        except FileNotFoundError:
            return None

    def write_file(self, name: str, data: bytes) -> None:
        """Write a file below the root, atomically."""
        self._write(f"{self._root}/{name}", data)

    def send(self, source: BinaryIO, name: str) -> tuple[str, int]:
        """Write a file of any length below the root, atomically; return its digest and size."""
        path, sha, size = f"{self._root}/{name}", hashlib.sha256(), 0
        folder, _, last = path.rpartition("/")
        self._fs.makedirs(folder, exist_ok=True)
        part = f"{folder}/.{last}.part" if self._local else path
        with self._fs.open(part, "wb") as out:
            while chunk := source.read(CHUNK_BYTES):
                sha.update(chunk)
                size += len(chunk)
                out.write(chunk)
        if self._local:
            self._fs.mv(part, path)
        return sha.hexdigest(), size

    def fetch(self, name: str, out: BinaryIO) -> str:
        """Copy a file below the root and return its digest. Raises FileNotFoundError."""
        sha = hashlib.sha256()
        with self._fs.open(f"{self._root}/{name}", "rb") as source:
            while chunk := source.read(CHUNK_BYTES):
                sha.update(chunk)
                out.write(chunk)
        return sha.hexdigest()

    def remove_named(self, name: str) -> None:
        """Delete a file below the root."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(f"{self._root}/{name}")

    def _names(self, folder: str) -> list[str]:
        return list(self._entries(folder))

    def _files(self, folder: str) -> dict[str, dict[str, Any]]:
        return {n: i for n, i in self._entries(folder).items() if i["type"] == "file"}

    def _entries(self, folder: str) -> dict[str, dict[str, Any]]:
        self._fs.invalidate_cache()
        try:
            listed = self._fs.ls(folder, detail=True)
        except FileNotFoundError:
            return {}
        named = {str(info["name"]).rstrip("/").rsplit("/", 1)[-1]: info for info in listed}
        return {name: info for name, info in named.items() if name}

    def _below(self, folder: str) -> Iterator[tuple[str, dict[str, Any]]]:
        self._fs.invalidate_cache()
        for path, info in self._fs.find(folder, detail=True).items():
            yield str(path), info


def _kept(project: str, name: str, info: dict[str, Any]) -> Kept:
    when = info.get("mtime", info.get("LastModified", info.get("created", time.time())))
    stamp = float(when) if isinstance(when, int | float) else float(when.timestamp())
    return Kept(project, name, int(info["size"] or 0), stamp)
