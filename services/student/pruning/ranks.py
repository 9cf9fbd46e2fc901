"""Do two ways of scoring put the same parts first? Spearman's rank correlation."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.floating]


def rank_correlation(first: Numbers, second: Numbers) -> float | None:
    """Spearman's rho of two scores [n], from -1 to 1: the correlation of their ranks, tied ones
    sharing their mean. None where it is undefined: fewer than 2 scores, or all of one equal."""
    ranks = np.stack([_ranks(first), _ranks(second)])
    if len(first) < 2 or not ranks.std(axis=1).all():
        return None
    return float(np.asarray(np.corrcoef(ranks))[0, 1])


def _ranks(scores: Numbers) -> npt.NDArray[np.float64]:
    """Ranks [n] from 0, rising with the score."""
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    means: npt.NDArray[np.float64] = counts.cumsum() - (counts + 1) / 2
    return means[places]
