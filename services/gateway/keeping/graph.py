"""What refers to which blob: from rows and refs, through manifests, cards and records, to bytes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from services.common.errors import NotFound
from services.common.shelf import Shelf
from services.gateway.keeping.digests import digests_in
from services.gateway.keeping.roots import Root
from services.gateway.keeping.rules import MANIFEST, REFS, VALUE, Need, Rules, is_loose, need_of

STAGES = "refs/stages/"
_JSON = (b"{", b"[")
_MOST_LINKS = 16
"""Reasons that are kept for one blob: an image can be in hundreds of manifests."""


@dataclass(frozen=True)
class Link:
    """One reason to keep a blob. `path` leads to it from its owner."""

    digest: str
    owner: str
    path: str
    need: Need

    @property
    def is_stage(self) -> bool:
        """Whether a stage's stored output is all that it is for."""
        return self.owner.startswith(STAGES)


@dataclass
class Graph:
    """What is named in one project."""

    project: str
    links: dict[str, list[Link]] = field(default_factory=lambda: defaultdict(list))
    unread: dict[str, Root] = field(default_factory=dict)
    """Blobs that are gone or damaged, so that what they named is not known."""
    unknown: set[str] = field(default_factory=set)
    """Fields and folders of refs that no rule knows, though they name a blob."""

    def need(self, digest: str) -> Need | None:
        """Return how much a blob is needed at most; None where nothing names it."""
        return max((link.need for link in self.links.get(digest, ())), default=None)


class Walk:
    """Follows names within one project. Blocking; reads every blob that is JSON, once."""

    def __init__(self, shelf: Shelf, project: str, *, stages: bool = True) -> None:
        """`stages=False` leaves out what stages have stored for later jobs."""
        self._shelf, self._with_stages = shelf, stages
        self.graph = Graph(project)
        self._done: set[tuple[str, str, int]] = set()
        self._texts: dict[str, list[tuple[tuple[str, ...], str]]] = {}

    def run(self, roots: Iterable[Root]) -> Graph:
        """Follow rows' names and all refs of the project."""
        project = self.graph.project
        self.follow([root for root in roots if root.project == project])
        for ref in self._shelf.refs(project):
            if self._with_stages or not ref.name.startswith("stages/"):
                self.follow(self.named_by(ref.name))
        return self.graph

    def follow(self, roots: Iterable[Root]) -> None:
        """Add names, and what the blobs that they name do name."""
        waiting = list(roots)
        while waiting:
            root = waiting.pop()
            key = (root.digest, root.owner, root.need)
            if key in self._done:
                continue
            self._done.add(key)
            link = Link(root.digest, root.owner, root.path, root.need)
            links = self.graph.links[root.digest]
            if len(links) < _MOST_LINKS or link.need > max(one.need for one in links):
                links.append(link)
            if root.rules is not None:
                waiting += self.inside(root)

    def named_by(self, name: str) -> list[Root]:
        """Return what a ref names."""
        folder = name.partition("/")[0]
        rules = REFS.get(folder)
        if rules is None:
            self.graph.unknown.add(f"refs/{folder}")
        inner = VALUE if folder == "stages" else Rules()
        found = []
        for path, digest in digests_in(self._shelf.get_ref(self.graph.project, name)):
            need = need_of(rules or Rules(), path)
            self._note_unknown(folder, path, digest, need)
            where = (f"refs/{name}", ".".join(path), need or Need.LOOSE)
            found.append(Root(self.graph.project, digest, *where, inner))
        return found

    def inside(self, root: Root) -> list[Root]:
        """Return what a blob names."""
        rules, found = root.rules or Rules(), []
        for path, digest in self._read(root):
            need = need_of(rules, path)
            self._note_unknown("", path, digest, need)
            leaf = path in (("items", "digest"), ("shards", "digest"))
            inner = MANIFEST if path[-1:] == ("manifest",) else Rules()
            where = f"{root.path}.{'.'.join(path)}" if root.path else ".".join(path)
            least = min(need or Need.LOOSE, root.need)
            inner_or_none = None if leaf else inner
            found.append(Root(self.graph.project, digest, root.owner, where, least, inner_or_none))
        return found

    def _read(self, root: Root) -> list[tuple[tuple[str, ...], str]]:
        """Return the names in a blob; none where it is no JSON, or is not there."""
        known = self._texts.get(root.digest)
        if known is not None:
            return known
        found: list[tuple[tuple[str, ...], str]] = []
        try:
            if self._shelf.head(self.graph.project, root.digest) in _JSON:
                found = list(digests_in(self._shelf.get(self.graph.project, root.digest)))
        except NotFound:
            if root.need > Need.LOOSE:
                self.graph.unread[root.digest] = root
        self._texts[root.digest] = found
        return found

    def _note_unknown(
        self, kind: str, path: tuple[str, ...], digest: str, need: Need | None
    ) -> None:
        if need is None and not is_loose(path) and self._shelf.exists(self.graph.project, digest):
            self.graph.unknown.add(f"{kind}:{'.'.join(path)}")
