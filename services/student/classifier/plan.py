"""Which view of which image each step trains on: fixed by counts and seed alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """Images [steps, batch], counted from 0, and the views of them [steps, batch]."""

    images: Ints
    views: Ints


def plan_steps(images: int, *, views: int, steps: int, batch: int, seed: int) -> Plan:
    """Pass after pass over all images, each in a new order, each with an image's next view.

    Each image begins at a view of its own, so that after `views` passes it has been seen in all of
    them, and no pass has the same view of every image. A step may hold the end of one pass and the
    beginning of the next.
    """
    rng = np.random.default_rng(seed)
    first = rng.integers(0, views, images)
    passes = -(-steps * batch // images)
    order = np.concatenate([rng.permutation(images) for _ in range(passes)])[: steps * batch]
    turn = np.arange(steps * batch) // images
    shown = (first[order] + turn) % views
    return Plan(order.reshape(steps, batch), shown.reshape(steps, batch).astype(np.int64))
