"""The four commands: what each does, and what it says at its end."""

from __future__ import annotations

import argparse

from services.common.catalogue import load_catalogue
from services.common.errors import NotFound
from services.common.outbound import Addresses
from services.common.shelf import Shelf
from services.gateway.datasets.readers import Reading
from services.gateway.keeping import sqlite_copy
from services.gateway.keeping.backup import back_up
from services.gateway.keeping.collect import DAY_S, HOUR_S, Ages, Collected
from services.gateway.keeping.collect import collect as collect_blobs
from services.gateway.keeping.fsck import Outcome, Repair, check_bytes, find
from services.gateway.keeping.lease import Lease, lease
from services.gateway.keeping.repairs import ForgetStage, FromBackup, FromSource
from services.gateway.keeping.restore import restore as restore_backup
from services.gateway.keeping.roots import Rows, read_rows
from services.gateway.keeping.showing import Bar
from services.gateway.settings import GatewaySettings
from services.gateway.store import Store

Said = tuple[dict[str, object], list[str], bool]
"""For programs, for people, and whether all is well."""


def fsck(given: argparse.Namespace, bar: Bar) -> Said:
    """Check every blob, repair what can be repaired, and name the rest."""
    settings, shelf, store = _opened()
    with lease(shelf, "a check") as held:
        outcome = _check(given, bar, held, settings, shelf, store)
    store.close()
    return outcome.to_json(), _told(outcome, given), not outcome.hurt


def _check(
    given: argparse.Namespace,
    bar: Bar,
    held: Lease,
    settings: GatewaySettings,
    shelf: Shelf,
    store: Store,
) -> Outcome:
    shelf.recover()
    outcome = Outcome()
    bar.expect(sum(1 for project in shelf.projects() for _ in shelf.blobs(project)))
    damaged: list[tuple[str, str]] = []

    def tell(told: Outcome) -> None:
        held.check()
        bar.at(told.checked)

    try:
        check_bytes(shelf, outcome, damaged, tell, after=given.after)
        outcome.complete = True
    except KeyboardInterrupt:
        bar.interrupted = True
    repairs = [] if given.no_repair else _repairs(settings, shelf, store, given.source)
    find(shelf, read_rows(store, settings.database_url), damaged, outcome, repairs)
    return outcome


def gc(given: argparse.Namespace, bar: Bar) -> Said:
    """Remove what nothing needs, or with a dry run say what that would be."""
    settings, shelf, store = _opened()
    ages = Ages(
        given.grace_hours * HOUR_S,
        given.quarantine_days * DAY_S,
        given.stages_days * DAY_S if given.stages_days else None,
    )

    with lease(shelf, "a garbage collection") as held:

        def read() -> Rows:
            held.check()
            return read_rows(store, settings.database_url)

        found = collect_blobs(
            shelf,
            read,
            ages,
            dry_run=not given.yes,
            despite_damage=given.despite_damage,
            progress=lambda _: held.check(),
        )
    store.close()
    return found.to_json(), _swept(found), not found.skipped


def backup(given: argparse.Namespace, bar: Bar) -> Said:
    """Back up rows, refs and blobs."""
    settings = GatewaySettings()
    shelf = Shelf(settings.blob_url)
    bar.expect(sum(1 for project in shelf.projects() for _ in shelf.blobs(project)))
    target = Shelf(given.dest)
    saved = back_up(settings.database_url, shelf, target, lambda told: bar.at(told.blobs))
    new = f"{saved.copied:,} of them new ({_size(saved.bytes_copied)})"
    lines = [
        f"backup {saved.id}: {saved.blobs:,} blobs, {new}",
        f"digest of its manifest: {saved.digest}",
    ]
    lines += [f"DAMAGED, not in the backup: {one}; run `stillhouse fsck`" for one in saved.damaged]
    lines += [f"GONE while it was copied, not in the backup: {one}" for one in saved.vanished]
    return saved.to_json(), lines, not (saved.damaged or saved.vanished)


def restore(given: argparse.Namespace, bar: Bar) -> Said:
    """Restore a backup into an empty place, and check that all that is named is there."""
    settings = GatewaySettings()
    shelf, url = Shelf(settings.blob_url), settings.database_url
    done = restore_backup(
        Shelf(given.src),
        url,
        shelf,
        backup_id=given.id,
        digest=given.digest,
        revoke_keys=given.revoke_keys,
        progress=lambda told: bar.at(told.blobs),
    )
    store, outcome = Store(url), Outcome()
    find(shelf, read_rows(store, url), [], outcome, [ForgetStage(shelf)])
    store.close()
    lines = [f"restored backup {done.id}: {done.blobs:,} blobs, {done.refs:,} refs", done.note]
    lines += _named(outcome)
    body = done.to_json() | {"hurt": len(outcome.hurt)}
    return body, [line for line in lines if line], not outcome.hurt


def _opened() -> tuple[GatewaySettings, Shelf, Store]:
    """Open what the settings name. Raises NotFound rather than make a new database: to a wrong one
    all blobs would look like garbage."""
    settings = GatewaySettings()
    url = settings.database_url
    if url.startswith("sqlite") and sqlite_copy.is_empty(url):
        raise NotFound(f"there is no database at {sqlite_copy.paths(url)[sqlite_copy.ROWS]}")
    return settings, Shelf(settings.blob_url), Store(url)


def _repairs(settings: GatewaySettings, shelf: Shelf, store: Store, source: str) -> list[Repair]:
    catalogue = load_catalogue([settings.catalogue] if settings.catalogue else [])
    reading = Reading.of(settings, shelf, catalogue, Addresses(settings.allowed_addresses))
    found: list[Repair] = [FromBackup(Shelf(source), shelf)] if source else []
    return [*found, FromSource(store, reading), ForgetStage(shelf)]


def _told(outcome: Outcome, given: argparse.Namespace) -> list[str]:
    lines = [f"{outcome.checked:,} blobs checked, {_size(outcome.bytes)}"]
    repaired = [one for one in outcome.findings if one.repair]
    lines += [f"{one.what}: {one.project}/{one.digest}: {one.repair}" for one in repaired]
    lines += _named(outcome)
    lines += [f"no rule knows {one}, which names a blob; it is kept" for one in outcome.unknown]
    if not outcome.complete:
        lines.append(f"interrupted; go on with --after {outcome.last or given.after}")
    elif not outcome.findings:
        lines.append("all well")
    return lines


def _named(outcome: Outcome) -> list[str]:
    lines = []
    for one in outcome.hurt:
        lines.append(f"{one.what.upper()}: {one.project}/{one.digest}; {one.advice}")
        lines += [f"    needed by {owner}" for owner in one.needed_by]
    return lines


def _swept(found: Collected) -> list[str]:
    verb = "would remove" if found.dry_run else "removed"
    others = f"{found.quarantined:,} from quarantine, {found.stages:,} stored outputs of stages"
    lines = [
        f"{verb} {found.blobs:,} blobs ({_size(found.bytes)}), {found.leftovers:,} half files",
        f"{verb} {others}",
        f"kept {found.kept:,} that are named and {found.young:,} that are too young",
    ]
    lines += [f"project {name} skipped: {why}" for name, why in found.skipped.items()]
    return lines + (["run it with --yes to remove them"] if found.dry_run and found.blobs else [])


def _size(count: int) -> str:
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"
