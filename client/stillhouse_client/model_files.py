"""The files of a language model, written into a folder that transformers and peft can load."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path

from stillhouse.gateway.v1 import models_pb2 as pb

from stillhouse_client.blobs import AsyncBlobs
from stillhouse_client.errors import InvalidRequest, Mismatch, ServerFault

Progress = Callable[[str, int, int, bool], None]
"""Called after each file: its name, files done, files in all, and whether it was there already."""


async def fetch(
    blobs: AsyncBlobs,
    files: pb.ProjectModelFiles,
    folder: Path,
    *,
    progress: Progress | None = None,
) -> None:
    """Write files into `folder`, each appearing only once complete; equal ones are kept.

    Raises Mismatch where there are none, ServerFault for a name that is not a plain file name,
    InvalidRequest where the folder cannot be written.
    """
    wanted = sorted(files.files.items())
    if not wanted:
        raise Mismatch(
            "the model has no files of its own",
            hint="models of the catalogue are fetched from where they are published",
        )
    for name, _ in wanted:
        check_name(name)
    for done, (name, blob) in enumerate(wanted, 1):
        path = folder / name
        there = await asyncio.to_thread(has_digest, path, blob.digest)
        if not there:
            await _save(blobs, blob.digest, path)
        if progress is not None:
            progress(name, done, len(wanted), there)


def check_name(name: str) -> None:
    """Raise ServerFault where `name` could leave the folder or hide in it."""
    odd = name.startswith(".") or any(c in "/\\:" or not c.isprintable() for c in name)
    if not name or odd:
        raise ServerFault(f"the model names a file {name[:80]!r}", hint="nothing was written")


def has_digest(path: Path, digest: str) -> bool:
    """Return whether `path` is a plain file whose SHA-256 is `digest`."""
    if not path.is_file() or path.is_symlink():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == digest


async def _save(blobs: AsyncBlobs, digest: str, path: Path) -> None:
    try:
        await blobs.save(digest, path)
    except OSError as error:
        raise InvalidRequest(
            f"cannot write {path}: {error.strerror or error}", hint="choose another folder"
        ) from None
