"""What tuning did, as sentences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from stillhouse.gateway.v1 import students_pb2
from stillhouse.student.v1 import student_pb2

_SHORT = ("recall/", "precision/")


def edit(effect: student_pb2.EditEffect) -> str:
    """Return `Pink-Lady: "red skin" 0.41 -> 0.97 (box 0.82 ... 1.23)`."""
    low, high = sorted((effect.box_low, effect.box_high))
    return (
        f'{effect.edit.label}: "{effect.edit.concept}" '
        f"{effect.weight_before:.3g} -> {effect.weight_after:.3g} "
        f"(box {low:.3g} ... {high:.3g})"
    )


def change(item: student_pb2.MetricChange) -> str:
    """Return `recall of Pink-Lady +0.031 [0.004, 0.058]`."""
    return f"{_metric(item.metric)} {_signed(item.change)}"


def tuning(
    effects: Iterable[student_pb2.EditEffect],
    changes: Sequence[student_pb2.MetricChange],
    *,
    flipped: int = 0,
    warnings: Iterable[str] = (),
) -> str:
    """Return what a tuning did: weights, out-of-fold changes, random edits of equal size."""
    labels = []
    sentences = []
    for effect in effects:
        sentences.append(f"{edit(effect)}.")
        labels.append(effect.edit.label)
    shown = _relevant(changes, labels)
    if shown:
        sentences.append(f"Out of fold: {', '.join(change(c) for c in shown)};")
        random = [f"{_metric(c.metric)} {_signed(c.random_change)}" for c in shown]
        sentences.append(f"random edits of that size: {', '.join(random)}.")
    if flipped:
        sentences.append(f"{flipped} predictions changed.")
    sentences += [f"Note: {warning}." for warning in warnings]
    return " ".join(sentences)


def tuned(response: students_pb2.TuneStudentResponse) -> str:
    """Return the sentence of a TuneStudent response."""
    return tuning(
        response.version.effects,
        response.version.changes,
        flipped=response.flipped_items,
        warnings=response.warnings,
    )


def _relevant(
    changes: Sequence[student_pb2.MetricChange], labels: Sequence[str]
) -> list[student_pb2.MetricChange]:
    own = [c for c in changes if any(c.metric == f"{s}{label}" for label in labels for s in _SHORT)]
    overall = [c for c in changes if "/" not in c.metric]
    return [*own, *overall]


def _metric(name: str) -> str:
    kind, _, label = name.partition("/")
    words = kind.replace("_", " ")
    return f"{words} of {label}" if label else words


def _signed(value: student_pb2.Estimate) -> str:
    return f"{value.value:+.3f} [{value.low:.3f}, {value.high:.3f}]"


def split(name: str) -> str:
    """Return on which images something was measured; "" is train and val, out of fold."""
    return f"the {name} split" if name else "train and val, by fits that did not see them"
