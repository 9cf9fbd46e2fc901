"""Stratified folds and out-of-fold predictions: every item is predicted by a fit that did not see
it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]
FOLDS = 5


def stratified_folds(strata: npt.NDArray[np.generic], folds: int = FOLDS, seed: int = 0) -> Ints:
    """Assign items [n] to folds 0 .. folds - 1 so that every stratum spreads evenly.

    Within a stratum the order is drawn by `seed`; the fold that gets a stratum's remainder
    rotates, so that fold
    sizes differ by one at most. A stratum smaller than `folds` is missing from some folds'
    training data never,
    only from some folds' held-out data.
    """
    rng = np.random.default_rng(seed)
    assigned = np.zeros(len(strata), np.int64)
    turn = 0
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        rng.shuffle(members)
        assigned[members] = (np.arange(len(members)) + turn) % folds
        turn = (turn + len(members)) % folds
    return assigned


def label_strata(hot: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Strata [n] of labels bool [n, K]: the label, or for several labels the rarest one."""
    counts = hot.sum(axis=0)
    rarity = np.where(hot, counts, np.iinfo(np.int64).max)
    return np.asarray(rarity.argmin(axis=1), np.int64)


def out_of_fold(fold_of: Ints, predict: Callable[[Ints, Ints], Doubles], classes: int) -> Doubles:
    """Predictions [n, classes] where `predict(train, held_out)` gives those of the held-out
    rows."""
    predictions = np.zeros((len(fold_of), classes))
    for fold in np.unique(fold_of):
        held_out = np.flatnonzero(fold_of == fold)
        predictions[held_out] = predict(np.flatnonzero(fold_of != fold), held_out)
    return predictions
