"""Checks every blob by its digest, finds what is missing, and repairs what can be repaired.

Damaged blobs go into quarantine; nothing is deleted. A repair is one of: taken from a backup, read
again from a dataset's source, or forgotten as a stage's output so that it is computed again. What
none of these mends is named, with all that needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field

from services.common.errors import DataLoss, NotFound
from services.common.shelf import Shelf
from services.gateway.keeping.graph import Graph, Link, Walk
from services.gateway.keeping.roots import Rows
from services.gateway.keeping.rules import Need

_SHOWN = 8


@dataclass
class Finding:
    """A blob that is damaged or missing, and what came of it."""

    project: str
    digest: str
    what: str
    """`damaged` or `missing`."""
    needed_by: list[str]
    repair: str = ""
    """What was done; empty where nothing could be."""
    advice: str = ""

    @property
    def is_hurt(self) -> bool:
        """Whether something that a person made stays without it."""
        return not self.repair and bool(self.needed_by)


@dataclass
class Outcome:
    """What a check found."""

    checked: int = 0
    bytes: int = 0
    findings: list[Finding] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    """Fields that name blobs and that no rule knows: a release that forgot one."""
    last: str = ""
    """The last blob that was checked, `PROJECT/DIGEST`, for going on after it."""
    complete: bool = False

    @property
    def hurt(self) -> list[Finding]:
        """What stays damaged or missing."""
        return [one for one in self.findings if one.is_hurt]

    def to_json(self) -> dict[str, object]:
        """Return it for programs."""
        return asdict(self) | {"hurt": len(self.hurt)}


Repair = Callable[[str, str, list[Link]], str]
"""Given project, digest and its links: says how it mended the blob; empty where it did not."""
Progress = Callable[[Outcome], None]


def check_bytes(
    shelf: Shelf,
    outcome: Outcome,
    damaged: list[tuple[str, str]],
    progress: Progress = lambda _: None,
    *,
    after: str = "",
) -> None:
    """Read every blob after `after`; set damaged ones aside and add them to `damaged`."""
    first_project, _, first = after.partition("/")
    for project in shelf.projects():
        if project < first_project:
            continue
        for kept in shelf.blobs(project, after=first if project == first_project else ""):
            try:
                outcome.bytes += shelf.check(project, kept.name)
            except DataLoss:
                damaged.append((project, kept.name))
            except NotFound:  # collected meanwhile
                continue
            outcome.checked += 1
            outcome.last = f"{project}/{kept.name}"
            progress(outcome)


def find(
    shelf: Shelf,
    rows: Rows,
    damaged: Iterable[tuple[str, str]],
    outcome: Outcome,
    repairs: Iterable[Repair],
) -> None:
    """Say what needs the damaged blobs, find missing ones, and repair until nothing new appears.

    A manifest that was mended names blobs which nobody could know of before.
    """
    known = set(damaged)
    aside = {(p, one.name) for p in shelf.projects() for one in shelf.quarantine(p)}
    for project in sorted({*shelf.projects(), *rows.projects}):
        met: set[str] = set()
        while True:
            graph = Walk(shelf, project).run(rows.roots)
            outcome.unknown = sorted({*outcome.unknown, *graph.unknown})
            gone = [digest for digest in _gone(shelf, graph) if digest not in met]
            if not gone:
                break
            met.update(gone)
            for digest in gone:
                is_damaged = (project, digest) in known or (project, digest) in aside
                what = "damaged" if is_damaged else "missing"
                outcome.findings.append(_mend(project, digest, what, graph, repairs))
        for digest in sorted(d for p, d in known if p == project and d not in met):
            finding = Finding(project, digest, "damaged", [], "set aside; nothing needs it")
            outcome.findings.append(finding)


def _gone(shelf: Shelf, graph: Graph) -> list[str]:
    named = sorted(digest for digest in graph.links if (graph.need(digest) or 0) > Need.LOOSE)
    return [digest for digest in named if not shelf.exists(graph.project, digest)]


def _mend(project: str, digest: str, what: str, graph: Graph, repairs: Iterable[Repair]) -> Finding:
    links = [link for link in graph.links[digest] if link.need > Need.LOOSE]
    owners = sorted({f"{link.owner} ({link.path})" if link.path else link.owner for link in links})
    finding = Finding(project, digest, what, owners[:_SHOWN])
    for repair in repairs:
        finding.repair = repair(project, digest, links)
        if finding.repair:
            return finding
    finding.advice = _advice(links)
    return finding


def _advice(links: list[Link]) -> str:
    if all(link.need < Need.TRUTH for link in links):
        return "run the job that made it again: it computes the same bytes"
    return "give a backup that has it: --from BACKUP"
