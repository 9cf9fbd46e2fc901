"""Standardising presence: every column to mean 0 and spread 1 on the rows it is fitted to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]
FLAT = 1e-6


@dataclass(frozen=True)
class Scaling:
    """Column means and spreads, float32 [M], as a student stores them."""

    mean: npt.NDArray[np.float32]
    std: npt.NDArray[np.float32]

    def __call__(self, values: npt.NDArray[np.floating]) -> Doubles:
        """Standardised float64 [n, M] of values [n, M]."""
        centred = values.astype(np.float64) - self.mean.astype(np.float64)
        return np.asarray(centred / self.std.astype(np.float64), np.float64)


def fit_scaling(values: npt.NDArray[np.floating]) -> Scaling:
    """Measure values [n, M]; a column that does not vary gets spread 1, so it standardises to 0."""
    wide = values.astype(np.float64)
    std = wide.std(axis=0)
    std[std < FLAT] = 1.0
    return Scaling(wide.mean(axis=0).astype(np.float32), std.astype(np.float32))
