"""Removes blobs that nothing names, and what writers and readers have left behind.

A blob goes only where all of this holds: no row, no ref and no blob that is kept names it; it is
older than the grace; it was not stored since the oldest unfinished job or ingest of its project
began. What a young blob names stays as well: its writer is about to name it in a row. Storing a
blob again makes it young, so a writer that finds its bytes there already is as safe as another.
The blobs are listed before the rows are read: what is put and named in between is not in the list.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from services.common.shelf import Kept, Shelf
from services.gateway.keeping.graph import Graph, Walk
from services.gateway.keeping.roots import Root, Rows
from services.gateway.keeping.rules import Need, Rules

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S


@dataclass(frozen=True)
class Ages:
    """How old things must be, in seconds, before they go."""

    grace_s: float = DAY_S
    """Of blobs that nothing names, and of what a writer has begun."""
    quarantine_s: float = 30 * DAY_S
    stages_s: float | None = None
    """Of stored outputs of stages; None keeps them for later jobs for ever."""


@dataclass
class Collected:
    """What was, or with a dry run would be, removed."""

    dry_run: bool
    blobs: int = 0
    bytes: int = 0
    leftovers: int = 0
    quarantined: int = 0
    stages: int = 0
    kept: int = 0
    young: int = 0
    """Blobs that nothing names, and that are too young to go."""
    skipped: dict[str, str] = field(default_factory=dict)
    """By project, why nothing of it was collected."""

    def to_json(self) -> dict[str, object]:
        """Return it for programs."""
        return asdict(self)


def collect(
    shelf: Shelf,
    read: Callable[[], Rows],
    ages: Ages,
    *,
    dry_run: bool,
    despite_damage: bool = False,
    progress: Callable[[Collected], None] = lambda _: None,
) -> Collected:
    """Collect in all projects. `read` looks at the database anew. Blocking."""
    shelf.recover()
    found, now = Collected(dry_run), time.time()
    for project in shelf.projects():
        if not read().unfinished.get(project):
            _forget_stages(shelf, project, ages, now, found)
        listed, rows = list(shelf.blobs(project)), read()
        if not rows.projects:
            found.skipped[project] = "the database has no dataset and no job: is it the right one?"
            continue
        graph, limit = _kept(shelf, project, listed, rows, ages, now)
        if graph.unread and not despite_damage:
            digest = next(iter(graph.unread))
            found.skipped[project] = (
                f"{len(graph.unread)} blobs that name others cannot be read, first {digest}: run "
                "`stillhouse fsck` first, or say --despite-damage"
            )
            continue
        for one in listed:
            _judge(shelf, one, graph, limit, found)
            progress(found)
        _sweep(shelf, project, ages, now, found)
    return found


def _kept(
    shelf: Shelf, project: str, listed: list[Kept], rows: Rows, ages: Ages, now: float
) -> tuple[Graph, float]:
    """Return all that is named, by young blobs too, and the time before which a blob is old."""
    begun = rows.unfinished.get(project, now)
    limit = min(now, begun) - ages.grace_s
    walk = Walk(shelf, project)
    graph = walk.run(rows.roots)
    for one in listed:
        if one.modified > limit and graph.need(one.name) is None:
            walk.follow(_inside_young(walk, project, one.name))
    return graph, limit


def _inside_young(walk: Walk, project: str, digest: str) -> list[Root]:
    """The names in a blob that nothing names yet; the blob itself stays without a name."""
    young = Root(project, digest, "a young blob", "", Need.LOOSE, Rules())
    return walk.inside(young)


def _judge(shelf: Shelf, one: Kept, graph: Graph, limit: float, found: Collected) -> None:
    if graph.need(one.name) is not None:
        found.kept += 1
    elif one.modified > limit:
        found.young += 1
    elif found.dry_run or shelf.remove(one.project, one.name, older_than=limit):
        found.blobs += 1
        found.bytes += one.size


def _forget_stages(shelf: Shelf, project: str, ages: Ages, now: float, found: Collected) -> None:
    """Forget old outputs of stages. Their blobs become young: a job that has just found one by its
    ref has the grace to name it."""
    if ages.stages_s is None:
        return
    for ref in shelf.refs(project):
        if ref.name.startswith("stages/") and now - ref.modified > ages.stages_s:
            found.stages += 1
            if not found.dry_run:
                for root in Walk(shelf, project).named_by(ref.name):
                    shelf.make_young(project, root.digest)
                shelf.remove_ref(project, ref.name)


def _sweep(shelf: Shelf, project: str, ages: Ages, now: float, found: Collected) -> None:
    """Remove files that no writer goes on with, and what has been in quarantine for long."""
    for one in shelf.leftovers(project):
        if now - one.modified > ages.grace_s:
            found.leftovers += 1
            if not found.dry_run:
                shelf.remove_file(one)
    for one in shelf.quarantine(project):
        if now - one.modified > ages.quarantine_s:
            found.quarantined += 1
            if not found.dry_run:
                shelf.remove_file(one, "quarantine")
