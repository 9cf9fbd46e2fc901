"""Means with intervals over training seeds and questions: a hierarchical bootstrap.

Seeds and groups of questions are both drawn with replacement (Bouthillier et al. 2021, "Accounting
for variance in machine learning benchmarks": a figure of one seed says little). Questions about the
same thing are one group.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

DRAWS = 2_000
_AT_ONCE = 4 << 20
"""Numbers drawn at a time: test splits may have hundreds of thousands of groups."""
_LOW, _HIGH = 2.5, 97.5

Floats = NDArray[np.float64]
Estimate = dict[str, Any]
"""`value`, `low`, `high` (95 %) and `count`, or `value` None and a `reason`."""


@dataclass(frozen=True)
class Table:
    """Sums of a metric: `values` and `counts` [seeds, groups]; the mean is their ratio."""

    values: Floats
    counts: Floats
    groups: tuple[str, ...]


def table(runs: Sequence[Sequence[Mapping[str, Any]]], groups: Sequence[str] = ()) -> Table:
    """Return the table of runs of items with `group`, `value` and `count`.

    `groups` fixes the columns; without it they are those that occur, sorted.
    """
    names = tuple(groups) or tuple(sorted({str(i["group"]) for items in runs for i in items}))
    column = {name: at for at, name in enumerate(names)}
    values = np.zeros((len(runs), len(names)))
    counts = np.zeros_like(values)
    for row, items in enumerate(runs):
        for item in items:
            at = column.get(str(item["group"]))
            if at is not None:
                values[row, at] += float(item["value"])
                counts[row, at] += float(item.get("count", 1))
    return Table(values, counts, names)


def by_dataset(
    items: Mapping[str, Sequence[Mapping[str, Any]]], prefixes: Sequence[str]
) -> dict[str, list[Mapping[str, Any]]]:
    """Return items by metric, and by `{dataset}/{metric}` where several datasets have some.

    `prefixes` stand before the ids of the datasets' records.
    """
    found = {metric: list(some) for metric, some in items.items()}
    for metric, some in items.items():
        parts = {
            f"{prefix}{metric}": [one for one in some if str(one["id"]).startswith(prefix)]
            for prefix in prefixes
        }
        parts = {name: part for name, part in parts.items() if part}
        if len(parts) > 1:
            found |= parts
    return found


def estimate(found: Table, *, seed: int = 0) -> Estimate:
    """Return the mean over seeds and groups with its interval."""
    return _estimate(_mean(found), _draws(found, seed), found)


def difference(first: Table, second: Table, *, seed: int = 0) -> Estimate:
    """Return the mean of `first` minus that of `second`, paired: both are drawn alike."""
    if first.groups != second.groups:
        return _nothing("the two were not measured on the same questions")
    gap = _draws(first, seed) - _draws(second, seed)
    return _estimate(_mean(first) - _mean(second), gap, first)


def _estimate(value: float, drawn: Floats, found: Table) -> Estimate:
    if not math.isfinite(value):
        return _nothing("nothing was measured")
    known = drawn[np.isfinite(drawn)]
    low, high = np.percentile(known, [_LOW, _HIGH]) if len(known) else (value, value)
    return {
        "value": value,
        "low": float(low),
        "high": float(high),
        "count": int((found.counts.sum(axis=0) > 0).sum()),
    }


def _mean(found: Table) -> float:
    total = float(found.counts.sum())
    return float(found.values.sum()) / total if total > 0 else math.nan


def _draws(found: Table, seed: int) -> Floats:
    """Return means of DRAWS resamples. Seeds and groups come from the generator in the same order
    for tables of one shape, so that two of them are paired."""
    runs, groups = found.values.shape
    if not runs or not groups:
        return np.full(DRAWS, np.nan)
    draw = np.random.default_rng([7, seed])
    both = np.concatenate([found.values, found.counts]).T
    shares, rows = np.full(groups, 1 / groups), max(_AT_ONCE // groups, 1)
    parts = [
        draw.multinomial(groups, shares, min(rows, DRAWS - at)) @ both
        for at in range(0, DRAWS, rows)
    ]
    summed = np.concatenate(parts)
    by_seed = draw.multinomial(runs, np.full(runs, 1 / runs), DRAWS).astype(float)
    values = (by_seed * summed[:, :runs]).sum(axis=1)
    counts = (by_seed * summed[:, runs:]).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(values / counts, float)


def _nothing(reason: str) -> Estimate:
    return {"value": None, "reason": reason}
