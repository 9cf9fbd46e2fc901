"""The design matrix of a linear student, held feature-major with the intercept as its last row.

Rows are copied into torch's own memory (64-byte aligned): BLAS kernels may take another path, and
other last bits, on memory that numpy aligned to 16 bytes only.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Matrix = NDArray[np.floating] | Tensor


def as_float64(values: Matrix) -> Tensor:
    """A contiguous fp64 copy of values in memory that torch allocated."""
    source = values if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))
    return source.detach().to("cpu").to(torch.float64, copy=True).contiguous()


class Design:
    """Columns of one training set, [p, n] with p = m + 1; the last row is the constant 1."""

    def __init__(self, columns: Matrix) -> None:
        """Take columns [n, m]; ValueError on another rank, no items or values not finite."""
        source = as_float64(columns)
        if source.ndim != 2 or source.shape[0] == 0:
            raise ValueError("columns must be a matrix [items, columns] with at least one item")
        if not bool(torch.isfinite(source).all()):
            raise ValueError("columns hold a value that is not finite")
        ones = torch.ones(1, source.shape[0], dtype=torch.float64)
        self.rows = torch.cat([source.T, ones])
        self.rows32 = self.rows.to(torch.float32)
        self._curvature: float | None = None
        self._gram: Tensor | None = None

    @property
    def items(self) -> int:
        """Number of items n."""
        return self.rows.shape[1]

    @property
    def width(self) -> int:
        """Number of coordinates p per class, the intercept included."""
        return self.rows.shape[0]

    def select(self, coordinates: Tensor) -> Design:
        """The design of these coordinates [q] alone, in their order."""
        part = Design.__new__(Design)
        part.rows, part.rows32 = self.rows[coordinates], self.rows32[coordinates]
        part._curvature = part._gram = None
        return part

    def rows_as(self, dtype: torch.dtype) -> Tensor:
        """The design in fp32 or fp64."""
        return self.rows32 if dtype == torch.float32 else self.rows

    def logits(self, coef: Tensor) -> Tensor:
        """coef [K, p] to logits [K, n], in the dtype of coef."""
        return coef @ self.rows_as(coef.dtype)

    def gradient(self, residual: Tensor) -> Tensor:
        """Mean gradient [K, p] of residuals [K, n]."""
        return residual @ self.rows_as(residual.dtype).T / self.items

    def gram(self) -> Tensor:
        """X^T X [p, p], fp64."""
        if self._gram is None:
            self._gram = self.rows @ self.rows.T
        return self._gram

    def curvature(self) -> float:
        """Largest eigenvalue of X^T X / n, by power iteration from a fixed start (a few per cent
        low).
        """
        if self._curvature is None:
            vector = torch.linspace(1.0, 2.0, self.width, dtype=torch.float32)
            size = vector.norm()
            for _ in range(12):
                vector = self.rows32 @ ((vector / size) @ self.rows32) / self.items
                size = vector.norm()
            self._curvature = float(size)
        return self._curvature
