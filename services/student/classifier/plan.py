"""Which view of which image each step trains on: fixed by counts and seed alone."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """Pass after pass over all images, each in a new order, each with an image's next view.

    Each image begins at a view of its own, so that after `views` passes it has been seen in all of
    them, and no pass has the same view of every image. A step may hold the end of one pass and the
    beginning of the next. Any step can be asked for alone. Thread-safe.
    """

    images: int
    views: int
    batch: int
    seed: int

    def step(self, number: int) -> tuple[Ints, Ints]:
        """Images [batch] of a step, counted from 0, and the view of each [batch]."""
        places = np.arange(number * self.batch, (number + 1) * self.batch)
        turns, positions = np.divmod(places, self.images)
        rows = np.array(
            [self._order(int(t))[p] for t, p in zip(turns, positions, strict=True)], np.int64
        )
        return rows, np.asarray((self._first[rows] + turns) % self.views, np.int64)

    @functools.cached_property
    def _first(self) -> Ints:
        """The view [images] that each image begins at."""
        return np.random.default_rng([self.seed, 0]).integers(0, self.views, self.images)

    def _order(self, turn: int) -> Ints:
        return _order(self.images, self.seed, turn)


@functools.lru_cache(maxsize=8)
def _order(images: int, seed: int, turn: int) -> Ints:
    return np.random.default_rng([seed, 1, turn]).permutation(images)
