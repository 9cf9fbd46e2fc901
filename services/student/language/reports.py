"""The JSON report of a language run: measures with intervals, curves, and per-record results."""

from __future__ import annotations

from typing import Any

from services.student.artefacts import Card
from services.student.language.measures import Measured, as_json, change, estimates
from services.student.language.training import Progress

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
        report["change"] = {name: change(before[name], items) for name, items in after.items()}
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
    """Each question that is right or wrong, before and, where there is one, after."""
    found = []
    for metric in _JUDGED:
        second = None if after is None else after.get(metric)
        for at, item in enumerate(before.get(metric, ())):
            question: dict[str, Any] = {
                "metric": metric,
                "record_id": item.id,
                "group": item.group,
                "correct_before": bool(item.value),
            }
            if second is not None:
                question["correct_after"] = bool(second[at].value)
            found.append(question)
    return found
