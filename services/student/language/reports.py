"""The JSON report of a language run: measures with intervals, curves, and per-record results."""

from __future__ import annotations

from typing import Any

from services.student.artefacts import Card
from services.student.language.course import Progress
from services.student.language.measures import Measured, as_json, change, estimates

_JUDGED = ("choice_accuracy", "task_accuracy")


def make_report(
    before: Measured, after: Measured | None, progress: Progress | None, notes: Card
) -> Card:
    """The report; a model that was only measured has neither `after` nor curves."""
    report: Card = {
        "kind": "language",
        "before": estimates(before),
        "items": {"before": as_json(before)},
        "questions": _questions(before, after),
        **notes,
    }
    if after is not None:
        report["after"] = estimates(after)
        report["items"]["after"] = as_json(after)
        paired = [name for name in after if name in before]
        report["change"] = {name: change(before[name], after[name]) for name in paired}
    if progress is not None:
        report |= {
            "curves": [{"run": "", **point} for point in progress.curves],
            "steps": progress.step,
            "stopped_early": progress.stopped_early,
            "tokens": progress.tokens,
            "trained_tokens": progress.tokens,
            "seconds": progress.seconds,
        }
    return report


def _questions(before: Measured, after: Measured | None) -> list[dict[str, Any]]:
    """Each question that is right or wrong: before, after, or both, as far as it was measured."""
    found = []
    measured = {"correct_before": before, "correct_after": after or {}}
    for metric in _JUDGED:
        known = {when: items[metric] for when, items in measured.items() if metric in items}
        for same in zip(*known.values(), strict=True):
            question: dict[str, Any] = {
                "metric": metric,
                "record_id": same[0].id,
                "group": same[0].group,
            }
            question |= {when: bool(one.value) for when, one in zip(known, same, strict=True)}
            found.append(question)
    return found
