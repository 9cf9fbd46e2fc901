"""Sums per record, and their means with intervals: records of one group are drawn together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from services.common.errors import Precondition
from services.student.metrics import DRAWS, Doubles, Estimate, bootstrap_counts


@dataclass(frozen=True)
class Item:
    """What one record, or one sequence of joined texts, adds to a metric: value / count."""

    id: str
    group: str
    value: float
    count: int


Items = Sequence[Item]
Measured = Mapping[str, Items]
"""Items by metric."""


def check_finite(measured: Measured, when: str) -> None:
    """Raise Precondition where a model predicts no numbers `before training`, or after."""
    if all(math.isfinite(one.value) for items in measured.values() for one in items):
        return
    why = "its weights are damaged" if when.startswith("before") else "use a lower learning_rate"
    raise Precondition(
        f"the model predicts no finite numbers {when}; {why}", differences={"predictions": "NaN"}
    )


def estimate(items: Items, seed: int = 0) -> dict[str, Any]:
    """Sum of values over sum of counts with its 95 % bootstrap interval over groups, as JSON."""
    values, counts = _by_group(items)
    if not counts.sum():
        return {"value": None, "reason": "there is nothing to measure"}
    drawn = bootstrap_counts(len(values), DRAWS, seed)
    found = _interval(values.sum() / counts.sum(), _ratio(drawn, values, counts))
    return found.as_dict() | {"count": int(counts.sum())}


def change(before: Items, after: Items, seed: int = 0) -> dict[str, Any]:
    """The difference after - before over the same records, drawn in pairs, as JSON."""
    first, counts = _by_group(before)
    second, again = _by_group(after)
    if first.shape != second.shape or not np.array_equal(counts, again) or not counts.sum():
        return {"value": None, "reason": "before and after were not measured on the same records"}
    drawn = bootstrap_counts(len(first), DRAWS, seed)
    gain = second - first
    return _interval(gain.sum() / counts.sum(), _ratio(drawn, gain, counts)).as_dict()


def estimates(measured: Measured) -> dict[str, dict[str, Any]]:
    """Estimates by metric."""
    return {name: estimate(items) for name, items in measured.items()}


def as_json(measured: Measured) -> dict[str, list[dict[str, Any]]]:
    """Items by metric, for whoever joins several runs."""
    return {name: [asdict(item) for item in items] for name, items in measured.items()}


def _by_group(items: Items) -> tuple[Doubles, Doubles]:
    """Sums of values and counts of each group, groups in order of appearance."""
    place = {group: at for at, group in enumerate(dict.fromkeys(one.group for one in items))}
    values, counts = np.zeros(len(place)), np.zeros(len(place))
    for one in items:
        values[place[one.group]] += one.value
        counts[place[one.group]] += one.count
    return values, counts


def _ratio(drawn: Doubles, values: Doubles, counts: Doubles) -> Doubles:
    base = drawn @ counts
    kept = base > 0
    return np.asarray((drawn @ values)[kept] / base[kept], np.float64)


def _interval(value: float, resampled: Doubles) -> Estimate:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Estimate(float(value), min(float(low), float(value)), max(float(high), float(value)))
