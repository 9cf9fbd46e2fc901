"""Which split a text record goes to: decided by content, so the same on every run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from services.gateway.datasets.splits import Shares


def assign_texts(
    given: Sequence[str], units: Sequence[str], shares: Shares, *, keep_given: bool
) -> list[str]:
    """Return each record's split.

    Splits of the source stay where it has two or more, or where the records say theirs themselves
    (`keep_given`); a source with `train` and `val` only calls its held-out part `val`, and it
    becomes `test`. A record without one goes with its unit, else trains. Where the source has no
    splits, units (digests of a group, or of a prompt) are cut by `shares` in the order of their
    digests, so that records about the same thing never stand in two splits.
    """
    present = {split for split in given if split}
    if len(present) < 2 and not (present and keep_given):
        return _cut(units, shares)
    renamed = {"val": "test"} if present == {"train", "val"} else {}
    home = {unit: split for unit, split in zip(units, given, strict=True) if split}
    return [
        renamed.get(found, found)
        for unit, split in zip(units, given, strict=True)
        for found in [split or home.get(unit, "train")]
    ]


def _cut(units: Sequence[str], shares: Shares) -> list[str]:
    """Fill `test`, then `val`, up to their shares of the records, whole units at a time."""
    counts = Counter(units)
    total = len(units)
    want = {"test": _count(total, shares.test), "val": _count(total, shares.val)}
    split_of: dict[str, str] = {}
    for unit in sorted(counts):
        open_splits = [split for split, left in want.items() if left > 0]
        fits = open_splits and len(split_of) < len(counts) - 1
        split_of[unit] = open_splits[0] if fits else "train"
        if fits:
            want[open_splits[0]] -= counts[unit]
    return [split_of[unit] for unit in units]


def _count(total: int, share: float) -> int:
    """At least one of three or more, never all."""
    if share <= 0 or total < 3:
        return 0
    return min(max(round(total * share), 1), total - 1)
