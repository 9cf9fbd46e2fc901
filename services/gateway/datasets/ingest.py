"""Turn a source into a dataset: list, choose, check every image once, store, split, write the
manifest.

Everything stored is content-addressed and every choice depends on content alone, so running an
ingest again,
after a crash or twice at once, gives the same manifest.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from services.common import images
from services.common.blobs import BlobStore, digest_of
from services.common.errors import Cancelled, InvalidInput, Precondition, StillhouseError
from services.common.manifest import SPLITS, Item, Manifest
from services.gateway.datasets.duplicates import cross_split_pairs, duplicate_groups
from services.gateway.datasets.entries import (
    MAX_ITEMS,
    Entry,
    Listing,
    Rejected,
    Source,
    path_problem,
)
from services.gateway.datasets.splits import Shares, assign, thin

MAX_CLASSES = 10_000
MAX_SHOWN = 100
MAX_REMEMBERED = 500_000
Progress = Callable[[int, int], None]


Check = Callable[["Entry", "bytes | Rejected"], "Checked | Rejected"]


@dataclass(frozen=True)
class Options:
    """What a caller may choose. `max_items` 0 is all."""

    shares: Shares = Shares()
    max_items: int = 0


@dataclass(frozen=True)
class Checked:
    """An image that decodes: its entry, digest and perceptual hash."""

    entry: Entry
    digest: str
    hash: int


class Verdicts:
    """Perceptual hashes of images that decoded, so that another dataset of the same images, or an
    ingest that starts again in this process, need not decode them. Thread-safe."""

    def __init__(self) -> None:
        self._hashes: dict[tuple[str, str], int] = {}

    def get(self, project: str, digest: str) -> int | None:
        """Return the hash of an image of the project that is known to decode."""
        return self._hashes.get((project, digest))

    def put(self, project: str, digest: str, value: int) -> None:
        """Remember an image; beyond 500,000 no more are."""
        if len(self._hashes) < MAX_REMEMBERED:
            self._hashes[project, digest] = value


@dataclass(frozen=True)
class Ingested:
    """The outcome of an ingest. `rejected` and `duplicates` hold the first 100; the counts are
    complete."""

    manifest: Manifest
    manifest_digest: str
    manifest_bytes: int
    rejected: tuple[Rejected, ...]
    rejected_count: int
    duplicates: tuple[tuple[str, str, int], ...]
    duplicate_count: int

    @property
    def split_counts(self) -> dict[str, int]:
        """Items per split."""
        counts = Counter(item.split for item in self.manifest.items)
        return {split: counts[split] for split in SPLITS}


def ingest(
    source: Source,
    blobs: BlobStore,
    project: str,
    options: Options,
    *,
    limits: images.Limits = images.DEFAULT_LIMITS,
    threads: int = 2,
    verdicts: Verdicts | None = None,
    progress: Progress = lambda done, total: None,
    stopping: Callable[[], bool] = lambda: False,
) -> Ingested:
    """Read `source` into the blob store. Blocking, minutes for large sources.

    `progress(done, total)` is called after every item. Raises InvalidInput where nothing usable is
    found, Cancelled once `stopping()` is true, and what the source raises.
    """
    listing = source.listing()
    rejected = list(listing.rejected)
    chosen = thin(_usable(listing, rejected), options.max_items)
    if len(chosen) > MAX_ITEMS:
        raise InvalidInput(f"the source holds more than {MAX_ITEMS:,} images", field="source")
    checked: list[Checked] = []
    with ThreadPoolExecutor(threads, "ingest") as pool:
        check = partial(_check, blobs, project, limits, verdicts or Verdicts())
        found = _check_all(source, chosen, check, pool, 4 * threads, stopping)
        for done, one in enumerate(found, start=1):
            if isinstance(one, Checked):
                checked.append(one)
            else:
                rejected.append(one)
            progress(done, len(chosen))
            _go_on(stopping)
    checked = _once(checked, rejected)
    _require(listing, checked, rejected)
    return _publish(listing, checked, rejected, blobs, project, options, stopping)


def _usable(listing: Listing, rejected: list[Rejected]) -> list[Entry]:
    kept = []
    for entry in listing.entries:
        if problem := path_problem(entry.item_id):
            rejected.append(Rejected(entry.item_id, problem))
        else:
            kept.append(entry)
    return kept


def _check_all(
    source: Source,
    chosen: list[Entry],
    check: Check,
    pool: ThreadPoolExecutor,
    ahead: int,
    stopping: Callable[[], bool],
) -> Iterator[Checked | Rejected]:
    """Check images in order, `ahead` of them in flight, so that memory stays bounded."""
    by_id = {entry.item_id: entry for entry in chosen}
    flying: deque[Future[Checked | Rejected]] = deque()
    for name, data in source.read(by_id.keys()):
        _go_on(stopping)  # a source can take minutes to read; nothing is stored after the end
        flying.append(pool.submit(check, by_id.pop(name), data))
        if len(flying) >= ahead:
            yield flying.popleft().result()
    while flying:
        yield flying.popleft().result()
    for name in by_id:
        yield Rejected(name, "it has gone from the source")


def _go_on(stopping: Callable[[], bool]) -> None:
    if stopping():
        raise Cancelled("the ingest was stopped")


def _check(
    blobs: BlobStore,
    project: str,
    limits: images.Limits,
    verdicts: Verdicts,
    entry: Entry,
    data: bytes | Rejected,
) -> Checked | Rejected:
    """Decode and store one image, unless it is known to decode."""
    if isinstance(data, Rejected):
        return data
    digest = digest_of(data)
    value = verdicts.get(project, digest)
    try:
        if value is None:
            value = images.dhash(images.decode(data, limits))
    except StillhouseError as error:
        return Rejected(entry.item_id, error.message[:300])
    blobs.put(project, data)
    verdicts.put(project, digest, value)
    return Checked(entry, digest, value)


def _once(checked: list[Checked], rejected: list[Rejected]) -> list[Checked]:
    """Keep the first of identical images in a split: counted twice, they make intervals too narrow.

    Images that are identical across splits both stay, and are reported as a leak.
    """
    first: dict[tuple[str, str], str] = {}
    kept = []
    for one in checked:
        name = first.setdefault((one.digest, one.entry.split), one.entry.item_id)
        if name == one.entry.item_id:
            kept.append(one)
        else:
            rejected.append(Rejected(one.entry.item_id, f"the same image as {name}"))
    return kept


def _require(listing: Listing, checked: list[Checked], rejected: list[Rejected]) -> None:
    """Raise InvalidInput where there is nothing to train on, saying what was found instead."""
    why = f"; for example {rejected[0].path}: {rejected[0].reason}" if rejected else ""
    if not checked:
        raise InvalidInput(f"no usable image among {len(rejected)} files{why}", field="source")
    labels = {label for one in checked for label in one.entry.labels}
    if len(labels) < (1 if listing.multi_label else 2):
        raise InvalidInput(
            f"all {len(checked)} images have the class {', '.join(sorted(labels))!r}: "
            f"at least two classes are needed (one folder for each){why}",
            field="source",
        )
    if len(labels) > MAX_CLASSES:
        raise Precondition(f"{len(labels):,} classes; the limit is {MAX_CLASSES:,}")


def _publish(
    listing: Listing,
    checked: list[Checked],
    rejected: list[Rejected],
    blobs: BlobStore,
    project: str,
    options: Options,
    stopping: Callable[[], bool],
) -> Ingested:
    hashes = [one.hash for one in checked]
    splits = assign(
        [one.entry.labels for one in checked],
        [one.entry.split for one in checked],
        [one.digest for one in checked],
        duplicate_groups(hashes),
        options.shares,
    )
    used = {label for one in checked for label in one.entry.labels}
    classes = tuple(c for c in listing.classes if c in used) or tuple(sorted(used))
    index = {name: at for at, name in enumerate(classes)}
    items = tuple(
        Item(
            one.entry.item_id,
            one.digest,
            split,
            tuple(sorted(index[label] for label in one.entry.labels)),
        )
        for one, split in zip(checked, splits, strict=True)
    )
    manifest = Manifest(classes, listing.multi_label, items)
    manifest.check()
    data = manifest.to_bytes()
    count, pairs = cross_split_pairs(hashes, splits)
    named = tuple((items[a].item_id, items[b].item_id, distance) for a, b, distance in pairs)
    _go_on(stopping)
    digest = blobs.put(project, data)
    shown = tuple(rejected[:MAX_SHOWN])
    return Ingested(manifest, digest, len(data), shown, len(rejected), named, count)
