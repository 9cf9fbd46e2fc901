"""Which items are used and which split each goes to: decided by content, so the same on every
run."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from services.common.manifest import SPLITS
from services.gateway.datasets.entries import Entry

_THIN_SHARES = {"train": 0.6, "val": 0.1, "test": 0.3, "": 1.0}


@dataclass(frozen=True)
class Shares:
    """Shares of the items that go to `test` and `val` where the source has no splits."""

    test: float = 0.2
    val: float = 0.1


def thin(entries: Sequence[Entry], max_items: int) -> list[Entry]:
    """Return at most `max_items` entries, evenly over classes, in their order.

    Within a class the splits of the source get 60, 10 and 30 % (train, val, test) as far as there
    are as many, since a small set whose splits are as lopsided as some sources' would train badly.
    An entry of several labels counts for its rarest one.
    """
    if not 0 < max_items < len(entries):
        return list(entries)
    strata = _strata([entry.labels for entry in entries])
    queues = [_interleaved([entries[i] for i in found]) for found in strata.values()]
    kept: set[str] = set()
    while len(kept) < max_items and any(queues):
        for queue in queues:
            if queue and len(kept) < max_items:
                kept.add(queue.pop(0).item_id)
    return [entry for entry in entries if entry.item_id in kept]


def assign(
    labels: Sequence[tuple[str, ...]],
    given: Sequence[str],
    digests: Sequence[str],
    groups: Sequence[int],
    shares: Shares,
) -> list[str]:
    """Return each item's split.

    Splits of the source stay. A source with `train` and `val` only calls its held-out part `val`,
    as
    ImageNet does: it becomes `test`. Items without one in a source that has splits train. Where the
    source has none, or one alone, every class is cut by `shares`, whole groups of near-duplicates
    at
    a time, in the order of their digests.
    """
    present = {split for split in given if split}
    if len(present) >= 2:
        renamed = {"val": "test"} if "test" not in present else {}
        return [renamed.get(split, split) or "train" for split in given]
    result = ["train"] * len(labels)
    for indices in _strata(labels).values():
        for index, split in zip(
            *_cut(indices, digests, groups, shares),
            strict=True,
        ):
            result[index] = split
    return _unite(result, groups, digests)


def _cut(
    indices: Sequence[int], digests: Sequence[str], groups: Sequence[int], shares: Shares
) -> tuple[list[int], list[str]]:
    """Order one class's items, groups together, and cut it into test, val and train."""
    first: dict[int, str] = {}
    for index in indices:
        first[groups[index]] = min(first.get(groups[index], digests[index]), digests[index])
    ordered = sorted(indices, key=lambda i: (first[groups[i]], digests[i], i))
    n = len(ordered)
    test = _count(n, shares.test)
    val = min(_count(n - test, shares.val * n / max(n - test, 1)), max(n - test - 1, 0))
    return ordered, ["test"] * test + ["val"] * val + ["train"] * (n - test - val)


def _count(n: int, share: float) -> int:
    """At least one of three or more, never all."""
    if share <= 0 or n < 2:
        return 0
    return min(max(round(n * share), 1 if n >= 3 else 0), n - 1)


def _unite(splits: list[str], groups: Sequence[int], digests: Sequence[str]) -> list[str]:
    """Give a whole group the split most of it has; on a tie the one that helps testing least."""
    votes: dict[int, Counter[str]] = {}
    for split, group in zip(splits, groups, strict=True):
        votes.setdefault(group, Counter())[split] += 1
    chosen = {
        group: max(SPLITS, key=lambda split: (count[split], -SPLITS.index(split)))
        for group, count in votes.items()
    }
    return [chosen[group] for group in groups]


def _strata(labels: Sequence[tuple[str, ...]]) -> dict[str, list[int]]:
    """Indices by the rarest label of each item, by label."""
    counts = Counter(label for many in labels for label in many)
    found: dict[str, list[int]] = {}
    for index, many in enumerate(labels):
        rarest = min(many, key=lambda label: (counts[label], label), default="")
        found.setdefault(rarest, []).append(index)
    return dict(sorted(found.items()))


def _interleaved(entries: Sequence[Entry]) -> list[Entry]:
    """Entries of one class in an order whose every beginning has the splits in their shares."""
    by_split: dict[str, list[Entry]] = {}
    for entry in entries:
        by_split.setdefault(entry.split, []).append(entry)
    placed = []
    for split, found in by_split.items():
        found.sort(key=lambda entry: hashlib.sha256(entry.item_id.encode()).digest())
        share = _THIN_SHARES[split]
        placed += [((at + 0.5) / share, split, entry) for at, entry in enumerate(found)]
    return [entry for _, _, entry in sorted(placed, key=lambda one: (one[0], one[1]))]
