"""The report of a concept job: student against teacher and controls, as JSON. No I/O.

The top level holds the student's own NEC budget, `at_nec_10` the same keys at NEC <= 10, `curves`
fidelity over NEC. Every metric is {value, low, high}, a 95 % bootstrap interval over test items
(and draws); one that is undefined is {value: null, reason}.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from services.student.contenders import LOW_NEC
from services.student.data import Doubles
from services.student.evaluation import (
    Scored,
    Truth,
    decisions,
    detail,
    score,
    table_estimate,
)
from services.student.metrics import Estimate, bootstrap_counts, mean_estimate

Report = dict[str, Any]


@dataclass(frozen=True)
class Scores:
    """Scores of all contenders at every budget (first the student's own)."""

    budgets: Sequence[float]
    student: Sequence[Scored]
    draws: Sequence[Sequence[Scored]]
    random_words: Sequence[Scored] | None
    sparse_probe: Sequence[Scored]
    dense_probe: Scored


def make_report(
    truth: Truth, logits: Doubles, scores: Scores, classes: Sequence[str], seed: int
) -> Report:
    """Compose the report; `logits` [t, K] are the student's on the test items."""
    counts = bootstrap_counts(len(truth.test), seed=seed & 0xFFFF_FFFF)
    low = next((i for i, b in enumerate(scores.budgets) if b <= LOW_NEC), len(scores.budgets) - 1)
    teacher = score(truth, _as_logits(truth), 0.0)
    report = _at(scores, 0, counts, seed)
    report["at_nec_10"] = _at(scores, low, counts, seed)
    report["teacher_accuracy"] = mean_estimate(_accuracy(teacher), counts).as_dict()
    report["curves"] = _curves(scores, counts, seed)
    report["confusion"] = _confusion(truth, logits, classes)
    report |= _per_class(truth, logits, counts, classes)
    return report


def _as_logits(truth: Truth) -> Doubles:
    """The teacher's responses so that `decisions` reads them like logits."""
    return truth.test - 0.5 if truth.loss == "bce" else truth.test


def _accuracy(scored: Scored) -> Doubles:
    if scored.accuracy is None:
        raise ValueError("a manifest's items always have labels")
    return scored.accuracy


def _at(scores: Scores, index: int, counts: Doubles, seed: int) -> Report:
    student = scores.student[index]
    report: Report = {
        "student": _metrics(student, counts),
        "sparse_probe": _metrics(scores.sparse_probe[index], counts),
        "dense_probe": _metrics(scores.dense_probe, counts),
    }
    if scores.random_words is not None:
        report["random_words"] = _metrics(scores.random_words[index], counts)
    if scores.draws:
        draws = [draw[index] for draw in scores.draws]
        sizes = [draw.nec for draw in draws]
        spread = Estimate(float(np.mean(sizes)), min(sizes), max(sizes)).as_dict()
        report["random_control"] = _over_draws(None, draws, counts, seed) | {"nec": spread}
        report["paired_random"] = _over_draws(student, draws, counts, seed)
    return report


def _metrics(scored: Scored, counts: Doubles) -> Report:
    return {
        "fidelity": mean_estimate(scored.fidelity, counts).as_dict(),
        "accuracy": mean_estimate(_accuracy(scored), counts).as_dict(),
        "nec": Estimate(scored.nec, scored.nec, scored.nec).as_dict(),
    }


def _over_draws(
    student: Scored | None, draws: Sequence[Scored], counts: Doubles, seed: int
) -> Report:
    """Mean over draws, or the student minus it; items and draws are both resampled."""
    fidelity = np.stack([one.fidelity for one in draws])
    accuracy = np.stack([_accuracy(one) for one in draws])
    if student is not None:
        fidelity, accuracy = student.fidelity - fidelity, _accuracy(student) - accuracy
    seed &= 0xFFFF_FFFF
    return {
        "fidelity": table_estimate(fidelity, counts, seed).as_dict(),
        "accuracy": table_estimate(accuracy, counts, seed).as_dict(),
    }


def _curves(scores: Scores, counts: Doubles, seed: int) -> dict[str, list[Report]]:
    """Fidelity over NEC of every contender that has one."""
    points: dict[str, list[Report]] = {}
    for index in range(len(scores.budgets)):
        for name, entry in _at(scores, index, counts, seed).items():
            if name in ("student", "random_control", "random_words", "sparse_probe"):
                point = {"nec": entry["nec"]["value"], "fidelity": entry["fidelity"]}
                points.setdefault(name, []).append(point)
    return points


def _confusion(truth: Truth, logits: Doubles, classes: Sequence[str]) -> Report:
    """Counts of teacher's (rows) against student's (columns) decisions on the test items."""
    if truth.loss == "bce":
        return {}
    teacher, student = truth.test.argmax(axis=1), logits.argmax(axis=1)
    counts = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(counts, (teacher, student), 1)
    return {"classes": list(classes), "counts": counts.tolist()}


def _per_class(truth: Truth, logits: Doubles, counts: Doubles, classes: Sequence[str]) -> Report:
    student, teacher = detail(truth, logits, counts), detail(truth, _as_logits(truth), counts)
    agree = decisions(logits, truth.loss) == decisions(_as_logits(truth), truth.loss)
    rows = {
        name: {
            **student["per_class"][k],
            "teacher": teacher["per_class"][k],
            "agreement": mean_estimate(agree[:, k], counts).as_dict(),
            "support": int(0 if truth.labels is None else truth.labels[:, k].sum()),
        }
        for k, name in enumerate(classes)
    }
    report: Report = {"per_class": rows}
    if "mean_average_precision" in student:
        report["mean_average_precision"] = {
            "student": student["mean_average_precision"],
            "teacher": teacher["mean_average_precision"],
        }
    return report
