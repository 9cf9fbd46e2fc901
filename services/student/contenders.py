"""Who is compared with the named student: columns of every control, fitted by one protocol.

A contender is a pair of raw column matrices (training items, test items). Its fits and scores are
kept as arrays, so that a restarted worker skips the contenders that are done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.common.errors import InvalidInput
from services.common.tensors import Array
from services.student.data import ConceptData, Doubles, Ints, TextBank
from services.student.design import Design
from services.student.evaluation import Scored, Truth, View, score
from services.student.metrics import NON_ZERO, nec
from services.student.objective import Loss
from services.student.path import SparseFit, fit_path, path_problem
from services.student.scaling import fit_scaling
from services.student.solver import make_problem, solve

Arrays = dict[str, Array]

CURVE = (20.0, 10.0, 5.0, 3.0)
"""NEC budgets below the student's own at which all contenders are scored too."""
LOW_NEC = 10.0
DEFAULT_NEC = 30.0
L1_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Rows:
    """Row numbers of the items that are fitted to (train and val) and of the test items."""

    known: Ints
    test: Ints

    def view(self, columns: npt.NDArray[np.float32]) -> View:
        """Columns [n, m] of all items as a contender's view."""
        return columns[self.known], columns[self.test]


def budgets_below(headline: float) -> list[float]:
    """The student's budget, then those of the curve that are smaller."""
    return [headline, *(one for one in CURVE if one < headline)]


def random_bank(bank: TextBank, seed: int, draw: int) -> TextBank:
    """As many random unit vectors as the bank has words, centred by their own mean."""
    rng = np.random.default_rng([seed & 0xFFFF_FFFF_FFFF_FFFF, draw])
    directions = rng.standard_normal(bank.text.shape)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    text = directions.astype(np.float16)
    return TextBank(text, text.astype(np.float32).mean(axis=0), bank.image_mean)


def words_bank(bank: TextBank, words: npt.NDArray[np.float16], seed: int) -> TextBank:
    """As many of the control's words as the bank has, drawn by `seed`, centred by their own mean.

    Raises InvalidInput where widths differ.
    """
    if words.ndim != 2 or words.shape[1] != bank.text.shape[1] or not len(words):
        raise InvalidInput(
            f"control_embeddings: text {words.shape}, concepts have {bank.text.shape}",
            field="control_embeddings",
        )
    rng = np.random.default_rng(seed & 0xFFFF_FFFF_FFFF_FFFF)
    chosen = np.sort(rng.permutation(len(words))[: len(bank.text)])
    text = words[chosen]
    return TextBank(text, text.astype(np.float32).mean(axis=0), bank.image_mean)


def presence_view(data: ConceptData, bank: TextBank, rows: Rows) -> View:
    """Presence of a bank's words as a contender."""
    return rows.view(data.presence(bank))


def fit_at(
    columns: Doubles, targets: Doubles, loss: Loss, budgets: Sequence[float]
) -> list[SparseFit]:
    """One fit per budget on standardised columns [n, m]. Raises InvalidInput for unusable data."""
    try:
        found = fit_path(columns, targets, loss, budgets)
    except ValueError as error:
        raise InvalidInput(f"the student cannot be fitted: {error}", field="data") from None
    return [found[budget] for budget in budgets]


def fit_l1(columns: Doubles, targets: Doubles, loss: Loss, lam: float) -> SparseFit:
    """The L1 fit at one lambda, to a relative duality gap of 1e-6. Raises InvalidInput."""
    try:
        design = Design(columns)
        wanted = path_problem(design, targets, loss).targets
        solution = solve(make_problem(design, wanted, loss, lam), tolerance=L1_TOLERANCE)
    except ValueError as error:
        raise InvalidInput(f"the student cannot be fitted: {error}", field="data") from None
    weights = solution.weights.numpy().copy()
    weights[np.abs(weights) <= NON_ZERO] = 0.0
    return SparseFit(weights, solution.intercepts.numpy().copy(), lam)


def score_view(truth: Truth, view: View, budgets: Sequence[float]) -> list[Scored]:
    """A control, fitted at every budget and scored on the test items."""
    scaling = fit_scaling(view[0])
    fits = fit_at(scaling(view[0]), truth.train, truth.loss, budgets)
    return score_fits(truth, scaling(view[1]), fits)


def score_fits(truth: Truth, test: Doubles, fits: Sequence[SparseFit]) -> list[Scored]:
    """Scores of fits on standardised test columns [t, m]."""
    return [score(truth, fit.logits(test), nec(fit.weights)) for fit in fits]


def pack_scores(scores: Sequence[Scored]) -> Arrays:
    """Scores per budget as arrays for a checkpoint."""
    return {
        "fidelity": np.stack([one.fidelity for one in scores]),
        "accuracy": np.stack([_known(one) for one in scores]),
        "nec": np.array([one.nec for one in scores]),
    }


def unpack_scores(arrays: Arrays) -> list[Scored]:
    """The inverse of pack_scores."""
    rows = zip(arrays["fidelity"], arrays["accuracy"], arrays["nec"], strict=True)
    return [Scored(fidelity, accuracy, float(size)) for fidelity, accuracy, size in rows]


def pack_fits(fits: Sequence[SparseFit]) -> Arrays:
    """Fits as arrays for a checkpoint."""
    return {
        "weights": np.stack([one.weights for one in fits]),
        "intercepts": np.stack([one.intercepts for one in fits]),
        "lam": np.array([one.lam for one in fits]),
    }


def unpack_fits(arrays: Arrays) -> list[SparseFit]:
    """The inverse of pack_fits."""
    rows = zip(arrays["weights"], arrays["intercepts"], arrays["lam"], strict=True)
    return [SparseFit(weights, intercepts, float(lam)) for weights, intercepts, lam in rows]


def _known(scored: Scored) -> Doubles:
    if scored.accuracy is None:
        raise ValueError("a manifest's items always have labels")
    return scored.accuracy
