"""What edits did, out of fold: changes of metrics with paired intervals, beside random edits.

Warnings are sentences for people: `helps Pink-Lady, hurts Royal-Gala`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from stillhouse.student.v1 import student_pb2

from services.student.data import Doubles, Mask
from services.student.edits import Trial
from services.student.evaluation import decisions
from services.student.metrics import Estimate, bootstrap_counts
from services.student.objective import Loss

Share = tuple[Doubles, Mask]
"""Scores [n] and the items [n] over which they are averaged."""
Metric = Callable[[Mask], Share]


@dataclass(frozen=True)
class Effects:
    """Changes of metrics, number of items whose decision changed, and warnings."""

    changes: list[student_pb2.MetricChange]
    flipped: int
    warnings: list[str]


def measure(
    trial: Trial, teacher: Mask, labels: Mask, classes: Sequence[str], loss: Loss, seed: int
) -> Effects:
    """Compare decisions before and after, for all items and per class where something changed."""
    before, after = decisions(trial.before, loss), decisions(trial.after, loss)
    random = [decisions(one, loss) for one in trial.random]
    counts = bootstrap_counts(len(before), seed=seed & 0xFFFF_FFFF)
    metrics = _metrics(teacher, labels, classes, (before != after).any(axis=0))
    changes = []
    for name, metric in metrics.items():
        change = _change(name, metric, before, after, random, counts)
        if change is not None:
            changes.append(change)
    flipped = int((before != after).any(axis=1).sum())
    return Effects(changes, flipped, _warnings(changes, flipped))


def to_message(estimate: Estimate) -> student_pb2.Estimate:
    """The estimate on the wire."""
    return student_pb2.Estimate(value=estimate.value, low=estimate.low, high=estimate.high)


def _metrics(teacher: Mask, labels: Mask, classes: Sequence[str], moved: Mask) -> dict[str, Metric]:
    everyone = np.ones(len(labels), bool)
    metrics: dict[str, Metric] = {
        "fidelity": lambda found: (_same(found, teacher), everyone),
        "accuracy": lambda found: (_same(found, labels), everyone),
    }
    for k in np.flatnonzero(moved).tolist():
        metrics[f"recall/{classes[k]}"] = _recall(labels[:, k], k)
        metrics[f"precision/{classes[k]}"] = _precision(labels[:, k], k)
    return metrics


def _recall(truth: Mask, k: int) -> Metric:
    return lambda found: (found[:, k].astype(np.float64), truth)


def _precision(truth: Mask, k: int) -> Metric:
    return lambda found: (truth.astype(np.float64), found[:, k])


def _same(first: Mask, second: Mask) -> Doubles:
    """1 per item where one label agrees, the share of classes that do for several labels."""
    same = (first == second).astype(np.float64)
    single = bool((first.sum(axis=1) == 1).all() and (second.sum(axis=1) == 1).all())
    return np.asarray(same.min(axis=1) if single else same.mean(axis=1), np.float64)


def _change(
    name: str, metric: Metric, before: Mask, after: Mask, random: Sequence[Mask], counts: Doubles
) -> student_pb2.MetricChange | None:
    """None where the metric is undefined before or after."""
    first, second = metric(before), metric(after)
    if not first[1].any() or not second[1].any():
        return None
    start, end = _value(first), _value(second)
    change = student_pb2.MetricChange(
        metric=name, before=start, after=end, change=to_message(_paired(first, second, counts))
    )
    others = [_value(share) - start for share in map(metric, random) if share[1].any()]
    if others:
        low, high = np.percentile(others, [2.5, 97.5])
        mean = float(np.mean(others))
        change.random_change.CopyFrom(to_message(Estimate(mean, float(low), float(high))))
    return change


def _value(share: Share) -> float:
    return float(share[0][share[1]].mean())


def _paired(first: Share, second: Share, counts: Doubles) -> Estimate:
    """Change of a share with its interval over the same resamples of items."""
    before, after = _resampled(first, counts), _resampled(second, counts)
    drawn = np.isfinite(before) & np.isfinite(after)
    value = _value(second) - _value(first)
    if not drawn.any():
        return Estimate(value, value, value)
    low, high = np.percentile((after - before)[drawn], [2.5, 97.5])
    return Estimate(value, min(float(low), value), max(float(high), value))


def _resampled(share: Share, counts: Doubles) -> Doubles:
    among = counts @ share[1].astype(np.float64)
    total = counts @ (share[0] * share[1])
    return np.where(among > 0, total / np.maximum(among, 1.0), np.nan)


def _warnings(changes: Sequence[student_pb2.MetricChange], flipped: int) -> list[str]:
    found = {change.metric: change for change in changes}
    words = []
    sides = [f"helps {name}" for name in _moved(changes, up=True)]
    sides += [f"hurts {name}" for name in _moved(changes, up=False)]
    if sides:
        words.append(", ".join(sides))
    for name, what in (("fidelity", "agreement with the teacher"), ("accuracy", "accuracy")):
        if name in found and found[name].change.high < 0:
            words.append(
                f"{what} falls by {-100 * found[name].change.value:.1f} points out of fold"
            )
    if not flipped:
        words.append("changes no decision out of fold")
    elif _like_random(found.get("accuracy")) and _like_random(found.get("fidelity")):
        words.append("no more effect on the metrics than random edits of equal size")
    return words


def _moved(changes: Sequence[student_pb2.MetricChange], *, up: bool) -> list[str]:
    """Classes whose recall changes by more than its interval."""
    return [
        one.metric.removeprefix("recall/")
        for one in changes
        if one.metric.startswith("recall/") and (one.change.low > 0 if up else one.change.high < 0)
    ]


def _like_random(change: student_pb2.MetricChange | None) -> bool:
    if change is None or not change.HasField("random_change"):
        return False
    return change.random_change.low <= change.change.value <= change.random_change.high
