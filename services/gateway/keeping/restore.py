"""Restores a backup into an empty place: blobs, then refs, then the database.

Everything is checked by its digest. The database comes last and at once, so that no gateway can
start on a half; a restore that was interrupted goes on where it was.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from services.common.errors import DataLoss, InvalidInput, NotFound, Precondition
from services.common.shelf import Shelf
from services.gateway.jobs.engine import VERSION
from services.gateway.keeping.backup import BLOBS, FORMAT, MANIFEST, REFS, sealed, tables_of

_MARK = "restoring.json"


@dataclass
class Restored:
    """What a restore did."""

    id: str
    blobs: int = 0
    copied: int = 0
    refs: int = 0
    damaged: int = 0
    """Blobs that were damaged already when the backup was made."""
    note: str = ""

    def to_json(self) -> dict[str, object]:
        """Return it for programs."""
        return asdict(self)


def restore(
    source: Shelf,
    database_url: str,
    shelf: Shelf,
    *,
    backup_id: str = "",
    digest: str = "",
    revoke_keys: bool = False,
    progress: Callable[[Restored], None] = lambda _: None,
) -> Restored:
    """Restore the newest backup of `source`, or the one named. Blocking.

    Browsers' sessions are not restored, and with `revoke_keys` no key works any more: those that
    were revoked after the backup would work again.

    Raises NotFound, DataLoss where it is damaged or not that of `digest`, Precondition where the
    place is not empty or the backup does not fit this release.
    """
    manifest = read_manifest(source, backup_id, digest)
    tables = tables_of(database_url)
    _check_fit(manifest, database_url)
    _check_place(manifest, tables, database_url, shelf)
    done = Restored(str(manifest["id"]), damaged=len(manifest["damaged"]))
    if manifest["jobs"] != VERSION:
        done.note = (
            f"the backup's jobs are of version {manifest['jobs']}, this release runs {VERSION}: "
            "cancel those that have not ended, and start them again"
        )
    with tempfile.TemporaryDirectory(prefix="stillhouse-") as name:
        folder = Path(name)
        for file in manifest["files"]:
            _fetch(source, manifest, file, folder)
        wanted = list(_wanted(folder))
        _check_pool(source, wanted)
        shelf.write_file(_MARK, json.dumps({"id": manifest["id"]}).encode())
        _copy_blobs(source, shelf, wanted, done, progress)
        _put_refs(folder, shelf, done)
        tables.put_in_place(database_url, folder, _forgotten(revoke_keys=revoke_keys))
    shelf.remove_named(_MARK)
    return done


def read_manifest(source: Shelf, backup_id: str = "", digest: str = "") -> dict[str, Any]:
    """Return a backup's manifest, checked; the newest where none is named."""
    known = [one for one in source.listed("backups") if not backup_id or one == backup_id]
    for one in sorted(known, reverse=True):
        data = source.read_file(f"backups/{one}/{MANIFEST}")
        if data is not None:
            return _checked(one, data, digest)
    raise NotFound(f"there is no finished backup {backup_id} there".replace("  ", " "))


def _checked(backup_id: str, data: bytes, digest: str) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads(data)
        said = manifest.pop("digest")
    except (ValueError, KeyError, AttributeError, TypeError):
        raise DataLoss(f"the manifest of backup {backup_id} is damaged") from None
    if said != sealed(manifest) or (digest and said != digest):
        raise DataLoss(f"the manifest of backup {backup_id} was changed since it was written")
    return manifest


def _check_fit(manifest: dict[str, Any], database_url: str) -> None:
    if manifest["format"] != FORMAT:
        raise Precondition(
            f"the backup has format {manifest['format']}, this release reads {FORMAT}"
        )
    kind = "sqlite" if database_url.startswith("sqlite") else "postgresql"
    if manifest["database"] != kind:
        raise Precondition(
            f"the backup is of a {manifest['database']} database and can be restored into such a "
            f"one only; this place has {kind}"
        )


def _check_place(manifest: dict[str, Any], tables: Any, database_url: str, shelf: Shelf) -> None:
    """Raise Precondition unless all is empty, or this very backup is being restored there."""
    mark = shelf.read_file(_MARK)
    if not tables.is_empty(database_url, resuming=mark is not None):
        raise Precondition("the database is not empty; a restore needs an empty place")
    if mark is None and shelf.projects():
        raise Precondition("the blob store is not empty; a restore needs an empty place")
    if mark is not None and json.loads(mark)["id"] != manifest["id"]:
        raise Precondition(f"another backup is half restored here: {json.loads(mark)['id']}")


def _forgotten(*, revoke_keys: bool) -> dict[str, str]:
    """Return what is done to rows that would let somebody in again, by table."""
    done = {"access_sessions": "DELETE FROM access_sessions"}
    if revoke_keys:
        revoke = f"UPDATE api_keys SET revoked = {time.time()!r} WHERE revoked IS NULL"
        done["api_keys"] = revoke
    return done


def _fetch(source: Shelf, manifest: dict[str, Any], file: str, folder: Path) -> None:
    if "/" in file or file.startswith("."):
        raise InvalidInput(f"the backup names a file {file[:80]!r}")
    with contextlib.suppress(FileNotFoundError), (folder / file).open("wb") as out:
        digest = source.fetch(f"backups/{manifest['id']}/{file}", out)
        if digest == manifest["files"][file]["sha256"]:
            return
    raise DataLoss(f"{file} of backup {manifest['id']} is missing or damaged")


def _wanted(folder: Path) -> Iterator[tuple[str, str, int]]:
    for line in (folder / BLOBS).read_text().splitlines():
        project, digest, size = line.split()
        yield project, digest, int(size)


def _check_pool(source: Shelf, wanted: list[tuple[str, str, int]]) -> None:
    """Raise DataLoss where a blob of the list is not there, before anything is written."""
    projects = sorted({project for project, _, _ in wanted})
    there = {(p, kept.name): kept.size for p in projects for kept in source.blobs(p)}
    lost = [f"{p}/{digest}" for p, digest, size in wanted if there.get((p, digest)) != size]
    if lost:
        raise DataLoss(
            f"the backup lacks {len(lost):,} of its {len(wanted):,} blobs, first {lost[0]}"
        )


def _put_refs(folder: Path, shelf: Shelf, done: Restored) -> None:
    with (folder / REFS).open(encoding="utf-8") as lines:
        for line in lines:
            ref = json.loads(line)
            shelf.put_ref(ref["project"], ref["name"], ref["data"].encode())
            done.refs += 1


def _copy_blobs(
    source: Shelf,
    shelf: Shelf,
    wanted: list[tuple[str, str, int]],
    done: Restored,
    progress: Callable[[Restored], None],
) -> None:
    for project, digest, _ in wanted:
        if not shelf.exists(project, digest):
            with source.open(project, digest) as stream:
                found, _ = shelf.put_file(project, stream)
            assert found == digest  # the stream has checked it
            done.copied += 1
        done.blobs += 1
        progress(done)
