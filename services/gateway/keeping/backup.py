"""Backs up rows, refs and blobs while the gateway runs.

The order makes it consistent: the database first, then the refs, then the blobs. Rows and refs are
written after the blobs that they name, and blobs never change; so all that the copied rows and refs
name is in the store when the blobs are listed, and what was put since is copied as well, which does
no harm. A garbage collection or the removal of a deleted project would break this; the lease keeps
them away meanwhile. What vanishes all the same, by hand, is named.

A backup is a folder below `backups/`; its manifest, written last, names every file and the list of
blobs by digest. The blobs of all backups share one pool, so that a further backup copies what is
new.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from services.common.errors import DataLoss, InvalidInput, NotFound
from services.common.shelf import Shelf
from services.gateway.jobs.engine import VERSION
from services.gateway.keeping import postgres_copy, sqlite_copy
from services.gateway.keeping.lease import lease

FORMAT = 1
REFS, BLOBS, MANIFEST = "refs.jsonl", "blobs.txt", "manifest.json"


@dataclass
class Saved:
    """What a backup did."""

    id: str = ""
    digest: str = ""
    """Digest of the manifest: whoever keeps it elsewhere knows later that nobody changed it."""
    blobs: int = 0
    copied: int = 0
    bytes_copied: int = 0
    damaged: list[str] = field(default_factory=list)
    """Blobs that are damaged here and in no earlier backup, `PROJECT/DIGEST`."""
    vanished: list[str] = field(default_factory=list)
    """Blobs that somebody has removed while they were copied."""

    def to_json(self) -> dict[str, object]:
        """Return it for programs."""
        return asdict(self)


Progress = Callable[[Saved], None]


def back_up(
    database_url: str, shelf: Shelf, target: Shelf, progress: Progress = lambda _: None
) -> Saved:
    """Make a backup below `target`. Blocking. An interrupted one is begun anew, and finds the blobs
    that were copied. Raises Precondition where a garbage collection or another backup runs."""
    if target.root == shelf.root or target.root.startswith(f"{shelf.root}/"):
        raise InvalidInput("a backup must not lie in the blob store that it is of", field="DEST")
    with (
        lease(shelf, "a backup") as held,
        tempfile.TemporaryDirectory(prefix="stillhouse-") as name,
    ):

        def tell(told: Saved) -> None:
            held.check()
            progress(told)

        folder = Path(name)
        saved = Saved(id=datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ"))
        files = tables_of(database_url).snapshot(database_url, folder)
        (folder / REFS).write_text(_refs(shelf), encoding="utf-8")
        (folder / BLOBS).write_text(_copy_blobs(shelf, target, saved, tell))
        held.check()
        _publish(target, folder, [*files, REFS, BLOBS], database_url, saved)
    return saved


def tables_of(database_url: str) -> Any:
    """Return the module that copies this kind of database."""
    return sqlite_copy if database_url.startswith("sqlite") else postgres_copy


def sealed(body: dict[str, Any]) -> str:
    """Return the digest of a manifest's body."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _refs(shelf: Shelf) -> str:
    lines = []
    for project in shelf.projects():
        for ref in shelf.refs(project):
            try:
                data = shelf.get_ref(project, ref.name).decode()
            except NotFound:  # deleted meanwhile
                continue
            lines.append(json.dumps({"project": project, "name": ref.name, "data": data}))
    return "".join(f"{line}\n" for line in lines)


def _copy_blobs(shelf: Shelf, target: Shelf, saved: Saved, progress: Progress) -> str:
    """Copy what the pool lacks; return the list of all blobs of this backup."""
    lines = []
    for project in shelf.projects():
        there = {kept.name: kept.size for kept in target.blobs(project)}
        for kept in shelf.blobs(project):
            if there.get(kept.name) != kept.size and not _copy(
                shelf, target, project, kept.name, saved
            ):
                continue
            saved.blobs += 1
            lines.append(f"{project} {kept.name} {kept.size}\n")
            progress(saved)
    return "".join(lines)


def _copy(shelf: Shelf, target: Shelf, project: str, digest: str, saved: Saved) -> bool:
    try:
        with shelf.open(project, digest) as stream:
            _, size = target.put_file(project, stream)
    except DataLoss:
        saved.damaged.append(f"{project}/{digest}")
        return False
    except NotFound:
        saved.vanished.append(f"{project}/{digest}")
        return False
    saved.copied += 1
    saved.bytes_copied += size
    return True


def _publish(
    target: Shelf, folder: Path, files: list[str], database_url: str, saved: Saved
) -> None:
    described = {}
    for name in files:
        with (folder / name).open("rb") as source:
            digest, size = target.send(source, f"backups/{saved.id}/{name}")
        described[name] = {"sha256": digest, "size": size}
    body = {
        "format": FORMAT,
        "id": saved.id,
        "created": time.time(),
        "database": "sqlite" if database_url.startswith("sqlite") else "postgresql",
        "release": importlib.metadata.version("stillhouse"),
        "jobs": VERSION,
        "dbos": importlib.metadata.version("dbos"),
        "files": described,
        "blobs": saved.blobs,
        "damaged": saved.damaged,
        "vanished": saved.vanished,
    }
    saved.digest = sealed(body)
    manifest = json.dumps(body | {"digest": saved.digest}, indent=1, sort_keys=True)
    target.write_file(f"backups/{saved.id}/{MANIFEST}", manifest.encode())
