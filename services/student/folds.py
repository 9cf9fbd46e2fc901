"""The student again, five times, each fitted without one fold: what tuning effects are measured on.

Stored beside a student as safetensors `fold_of` int64 [n], `weights` float64 [F, K, M] and
`intercepts` [F, K], on columns standardised like the student's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from services.common.errors import InvalidInput
from services.common.tensors import pack_arrays, unpack_arrays
from services.student.crossfit import FOLDS, label_strata, stratified_folds
from services.student.data import Doubles, Ints, Mask
from services.student.path import SparseFit

Fit = Callable[[Doubles, Doubles], SparseFit]
"""Fits standardised columns [n, m] to targets [n, K]."""


@dataclass(frozen=True)
class FoldFits:
    """`fits[f]` has not seen the items i with `fold_of[i] == f`."""

    fold_of: Ints
    fits: tuple[SparseFit, ...]

    def logits(self, columns: Doubles) -> Doubles:
        """Out-of-fold logits [n, K] of standardised columns [n, m]."""
        found = np.zeros((len(columns), len(self.fits[0].weights)))
        for fold, fit in enumerate(self.fits):
            rows = self.fold_of == fold
            found[rows] = fit.logits(columns[rows])
        return found

    def to_bytes(self) -> bytes:
        """The fits as a blob."""
        return pack_arrays(
            {
                "fold_of": self.fold_of,
                "weights": np.stack([fit.weights for fit in self.fits]),
                "intercepts": np.stack([fit.intercepts for fit in self.fits]),
            }
        )


def split_folds(hot: Mask, seed: int) -> Ints:
    """Folds [n] of the items, stratified by label. Raises InvalidInput for fewer than two items."""
    if len(hot) < 2:
        raise InvalidInput(f"train and val hold {len(hot)} usable items, at least 2 are needed")
    return stratified_folds(label_strata(hot), min(FOLDS, len(hot)), seed & 0xFFFF_FFFF)


def fit_fold(columns: Doubles, targets: Doubles, fold_of: Ints, fold: int, fit: Fit) -> SparseFit:
    """The fit that does not see `fold`."""
    seen = fold_of != fold
    return fit(columns[seen], targets[seen])


def read_folds(data: bytes, items: int, shape: tuple[int, int]) -> FoldFits:
    """Read a blob of `to_bytes` for n items and weights [K, M]. Raises InvalidInput."""
    arrays = unpack_arrays(data, what="fold fits")
    try:
        fold_of = arrays["fold_of"].astype(np.int64)
        weights, intercepts = arrays["weights"], arrays["intercepts"]
    except KeyError as error:
        raise InvalidInput(f"fold fits: {error} is missing", field="fold_fits") from None
    folds = len(weights)
    fits = (
        fold_of.shape == (items,)
        and weights.shape == (folds, *shape)
        and intercepts.shape == (folds, shape[0])
        and folds > 0
        and bool(((fold_of >= 0) & (fold_of < folds)).all())
        and bool(np.isfinite(weights).all() and np.isfinite(intercepts).all())
    )
    if not fits:
        raise InvalidInput("fold fits: do not fit the student", field="fold_fits")
    rows = zip(weights.astype(np.float64), intercepts.astype(np.float64), strict=True)
    return FoldFits(fold_of, tuple(SparseFit(w, b, 0.0) for w, b in rows))
