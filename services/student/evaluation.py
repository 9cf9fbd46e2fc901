"""The report of a student against its controls, by one protocol for all.

Each contender (named concepts, 20 draws of random directions, random words, the embedding's own
dimensions) is standardised on the training items, taken down the same path, truncated to the same
NEC and refitted on its support; test items are read once, here. Intervals are 95 % bootstrap over
test items; where draws are averaged they are resampled with the items.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from services.student.crossfit import stratified_folds
from services.student.design import Design
from services.student.metrics import (
    Estimate,
    Undefined,
    average_precision,
    bootstrap_counts,
    mean_estimate,
    nec,
    precision,
    recall,
    resampled,
)
from services.student.objective import Loss
from services.student.path import PathSettings, SparseFit, fit_path
from services.student.ridge import fit_ridge
from services.student.scaling import fit_scaling

Doubles = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
View = tuple[npt.NDArray[np.floating[Any]], npt.NDArray[np.floating[Any]]]
"""Raw columns of the training items [n, m] and of the test items [t, m]."""
Report = dict[str, Any]
NO_LABELS = "the test items have no labels"


@dataclass(frozen=True)
class Truth:
    """Teacher responses of training [n, K] and test [t, K] items, and the test labels [t, K] if
    known.
    """

    train: Doubles
    test: Doubles
    labels: Mask | None
    loss: Loss


@dataclass(frozen=True)
class EvaluationSettings:
    """budgets: NEC limits, the first heads the report; draws of the random control; dense grid."""

    budgets: tuple[int, ...] = (30, 10)
    draws: int = 20
    resamples: int = 1000
    seed: int = 0
    path: PathSettings = field(default_factory=PathSettings)
    dense_l2: tuple[float, ...] = (1e-3, 1e-2, 1e-1)


_ROUGHLY = 1e-4
"""Gradient at which a fit ends that only chooses a penalty: half the steps, and held-out losses are
the same to a thousandth, a tenth of what they differ by between penalties."""


@dataclass(frozen=True)
class Scored:
    """Per-item scores of one contender: agreement with the teacher and the labels [t], and its
    NEC.
    """

    fidelity: Doubles
    accuracy: Doubles | None
    nec: float


@dataclass(frozen=True)
class Evaluation:
    """report is JSON; students by budget are fits on standardised columns."""

    report: Report
    students: dict[float, SparseFit]


def evaluate(
    truth: Truth,
    student: View,
    random_draw: Callable[[int], View],
    words: View | None = None,
    embeddings: View | None = None,
    settings: EvaluationSettings | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Fit student and controls, score them on the test items. random_draw(i) is the i-th draw's
    view.
    """
    settings = settings or EvaluationSettings()
    counts = bootstrap_counts(len(truth.test), settings.resamples, settings.seed)
    total = settings.draws + 4
    fits, scores = fit_and_score(truth, student, settings)
    progress(1, total)
    draws = []
    for draw in range(settings.draws):
        draws.append(fit_and_score(truth, random_draw(draw), settings)[1])
        progress(2 + draw, total)
    report: Report = {"student": _entry(scores, counts, settings)}
    report["student"] |= detail(truth, _test_logits(fits, student, settings), counts)
    report["teacher"] = _teacher(truth, counts)
    if draws:
        report["random_control"] = _draws_entry(draws, counts, settings)
        report["paired_random"] = _paired_entry(scores, draws, counts, settings)
    if words is not None:
        report["random_words"] = _entry(fit_and_score(truth, words, settings)[1], counts, settings)
    progress(total - 1, total)
    if embeddings is not None:
        probe = fit_and_score(truth, embeddings, settings)[1]
        report["sparse_probe"] = _entry(probe, counts, settings)
        report["dense_probe"] = _metrics(dense_probe(truth, embeddings, settings), counts)
    progress(total, total)
    return Evaluation(report, fits)


def fit_and_score(
    truth: Truth, view: View, settings: EvaluationSettings
) -> tuple[dict[float, SparseFit], dict[float, Scored]]:
    """One contender: its fits by budget, and their scores on the test items."""
    scaling = fit_scaling(view[0])
    fits = fit_path(scaling(view[0]), truth.train, truth.loss, settings.budgets, settings.path)
    test = scaling(view[1])
    scored = {b: score(truth, f.logits(test), nec(f.weights)) for b, f in fits.items()}
    return fits, scored


def score(truth: Truth, logits: Doubles, effective: float) -> Scored:
    """Per-item agreement of test logits [t, K] with the teacher and with the labels."""
    predicted = decisions(logits, truth.loss)
    responses = truth.test - 0.5 if truth.loss == "bce" else truth.test
    fidelity = _agreement(predicted, decisions(responses, truth.loss))
    if truth.labels is None:
        return Scored(fidelity, None, effective)
    return Scored(fidelity, _agreement(predicted, truth.labels), effective)


def decisions(logits: Doubles, loss: Loss) -> Mask:
    """Decisions [t, K]: the largest logit of an item, or every class above zero."""
    if loss == "bce":
        return np.asarray(logits > 0)
    return np.asarray(np.eye(logits.shape[1], dtype=bool)[logits.argmax(axis=1)])


def _agreement(first: Mask, second: Mask) -> Doubles:
    """Per item: 1 where the single labels agree, or the share of classes that do (multi-label).

    A one-hot row differs from another in two classes or none, so one rule reads both.
    """
    single = bool((first.sum(axis=1) == 1).all() and (second.sum(axis=1) == 1).all())
    same = (first == second).astype(np.float64)
    return np.asarray(same.min(axis=1) if single else same.mean(axis=1), np.float64)


def dense_probe(truth: Truth, view: View, settings: EvaluationSettings) -> Scored:
    """An L2 probe on all embedding dimensions, its penalty chosen out of fold on the training
    items.
    """
    scaling = fit_scaling(view[0])
    columns, test = scaling(view[0]), scaling(view[1])
    folds = stratified_folds(truth.train.argmax(axis=1), seed=settings.seed)
    losses, fits = _held_out_losses(columns, truth, folds, settings.dense_l2)
    chosen = min(settings.dense_l2, key=lambda l2: losses[l2])
    start = fits[chosen]
    fit = _dense(fit_ridge(Design(columns), truth.train, truth.loss, chosen, start=start))
    return score(truth, fit.logits(test), nec(fit.weights))


def _dense(coef: Tensor) -> SparseFit:
    return SparseFit(coef[:, :-1].numpy().copy(), coef[:, -1].numpy().copy(), 0.0)


def _held_out_losses(
    columns: Doubles, truth: Truth, folds: npt.NDArray[np.int64], penalties: Sequence[float]
) -> tuple[dict[float, float], dict[float, Tensor]]:
    """Summed loss by penalty of fits to the items of other folds, which share a fold's design; and
    the last fold's coefficients. The problems are convex, so that where a fit starts changes its
    steps alone: the same penalty's in the fold before, or the next larger one's."""
    total, fits = dict.fromkeys(penalties, 0.0), dict[float, Tensor]()
    for fold in np.unique(folds):
        out = folds == fold
        design, wanted = Design(columns[~out]), truth.train[out]
        coef: Tensor | None = None
        for l2 in sorted(penalties, reverse=True):
            start = fits.get(l2, coef)
            coef = fits[l2] = fit_ridge(design, truth.train[~out], truth.loss, l2, _ROUGHLY, start)
            total[l2] += _loss(_dense(coef).logits(columns[out]), wanted, truth.loss)
    return total, fits


def _loss(logits: Doubles, wanted: Doubles, loss: Loss) -> float:
    if loss == "bce":
        return float((np.logaddexp(0, logits) - wanted * logits).sum())
    peak = logits.max(axis=1, keepdims=True)
    log_sum = peak + np.log(np.exp(logits - peak).sum(axis=1, keepdims=True))
    return -float((wanted * (logits - log_sum)).sum())


def _metrics(scored: Scored, counts: Doubles) -> Report:
    accuracy: Report = {"value": None, "reason": NO_LABELS}
    if scored.accuracy is not None:
        accuracy = mean_estimate(scored.accuracy, counts).as_dict()
    return {
        "fidelity": mean_estimate(scored.fidelity, counts).as_dict(),
        "accuracy": accuracy,
        "nec": Estimate(scored.nec, scored.nec, scored.nec).as_dict(),
    }


def _by_budget(make: Callable[[int], Report], settings: EvaluationSettings) -> Report:
    """The first budget's report, with the others' under at_nec_<budget>."""
    entry = make(settings.budgets[0])
    for budget in settings.budgets[1:]:
        entry[f"at_nec_{budget}"] = make(budget)
    return entry


def _entry(scores: dict[float, Scored], counts: Doubles, settings: EvaluationSettings) -> Report:
    return _by_budget(lambda budget: _metrics(scores[budget], counts), settings)


def _draws_entry(
    draws: Sequence[dict[float, Scored]], counts: Doubles, settings: EvaluationSettings
) -> Report:
    def make(budget: int) -> Report:
        chosen = [draw[budget] for draw in draws]
        sizes = [one.nec for one in chosen]
        spread = Estimate(float(np.mean(sizes)), min(sizes), max(sizes)).as_dict()
        return _over_draws(None, chosen, counts, settings.seed) | {"nec": spread}

    return _by_budget(make, settings)


def _paired_entry(
    scores: dict[float, Scored],
    draws: Sequence[dict[float, Scored]],
    counts: Doubles,
    settings: EvaluationSettings,
) -> Report:
    def make(budget: int) -> Report:
        chosen = [draw[budget] for draw in draws]
        return _over_draws(scores[budget], chosen, counts, settings.seed)

    return _by_budget(make, settings)


def _over_draws(
    student: Scored | None, draws: Sequence[Scored], counts: Doubles, seed: int
) -> Report:
    """Mean over draws, or the student minus it, items and draws both resampled."""
    report: Report = {}
    for name in ("fidelity", "accuracy"):
        rows = [getattr(one, name) for one in draws]
        if rows[0] is None:
            report[name] = {"value": None, "reason": NO_LABELS}
            continue
        table = np.stack(rows)
        if student is not None:
            table = getattr(student, name) - table
        report[name] = table_estimate(table, counts, seed).as_dict()
    return report


def table_estimate(table: Doubles, counts: Doubles, seed: int) -> Estimate:
    """Mean of a table [draws, items] with a 95 % interval over both; counts [resamples, items]."""
    rows = bootstrap_counts(len(table), len(counts), seed + 1)
    values = ((rows @ table) * counts).sum(axis=1) / (table.shape[0] * table.shape[1])
    low, high = np.percentile(values, [2.5, 97.5])
    value = float(table.mean())
    return Estimate(value, min(float(low), value), max(float(high), value))


def _test_logits(fits: dict[float, SparseFit], view: View, settings: EvaluationSettings) -> Doubles:
    return fits[settings.budgets[0]].logits(fit_scaling(view[0])(view[1]))


def _teacher(truth: Truth, counts: Doubles) -> Report:
    if truth.labels is None:
        return {"accuracy": {"value": None, "reason": NO_LABELS}}
    responses = truth.test - 0.5 if truth.loss == "bce" else truth.test
    right = _agreement(decisions(responses, truth.loss), truth.labels)
    return {"accuracy": mean_estimate(right, counts).as_dict()}


def detail(truth: Truth, logits: Doubles, counts: Doubles) -> Report:
    """Per-class figures of test logits [t, K]: recall and precision; for several labels AP, mAP."""
    if truth.labels is None:
        return {"per_class": [], "reason": NO_LABELS}
    labels = truth.labels
    if truth.loss == "softmax":
        predicted, wanted = logits.argmax(axis=1), labels.argmax(axis=1)
        rows = [
            {
                "recall": _or_reason(partial(recall, predicted, wanted, k, counts)),
                "precision": _or_reason(partial(precision, predicted, wanted, k, counts)),
            }
            for k in range(logits.shape[1])
        ]
        return {"per_class": rows}
    rows = [
        {"ap": _or_reason(partial(_class_ap, logits[:, k], labels[:, k], counts))}
        for k in range(logits.shape[1])
    ]
    known = [row["ap"]["value"] for row in rows if row["ap"]["value"] is not None]
    mean_ap = float(np.mean(known)) if known else None
    return {"per_class": rows, "mean_average_precision": mean_ap}


def _class_ap(scores: Doubles, truth: Mask, counts: Doubles) -> Estimate:
    return resampled(lambda weights: average_precision(scores, truth, weights), counts)


def _or_reason(measure: Callable[[], Estimate]) -> Report:
    try:
        return dict(measure().as_dict())
    except Undefined as undefined:
        return {"value": None, "reason": str(undefined)}
