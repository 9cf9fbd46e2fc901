"""The order in which sequences are trained on: fixed by lengths, options and seed alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
WINDOW_BATCHES = 16
"""Batches within which sequences are sorted by length."""


def plan_steps(
    lengths: Ints,
    replay_lengths: Ints,
    *,
    steps: int,
    batch: int,
    replay_share: float,
    seed: int,
) -> Ints:
    """Indices [steps, batch] of the sequences of each step; from len(lengths) on they mean replay.

    Every pass over the data is a new shuffle. Within a window of some batches sequences of like
    length come together, so that little is padded. Replay fills `replay_share` of the sequences on
    average, a step's number of them differing by one at most.
    """
    share = replay_share if len(replay_lengths) else 0.0
    borders = np.floor(np.arange(steps + 1) * batch * share + 1e-9).astype(np.int64)
    fresh = _stream(lengths, batch, np.random.default_rng([seed, 0]))
    again = _stream(replay_lengths, batch, np.random.default_rng([seed, 1]))
    planned = np.empty((steps, batch), np.int64)
    for step, count in enumerate(np.diff(borders)):
        planned[step, : batch - count] = [next(fresh) for _ in range(batch - count)]
        planned[step, batch - count :] = [next(again) + len(lengths) for _ in range(count)]
    return planned


def _stream(lengths: Ints, batch: int, rng: np.random.Generator) -> Iterator[int]:
    """Endless indices: pass after pass, shuffled, like lengths near one another."""
    while True:
        order = rng.permutation(len(lengths))
        window = WINDOW_BATCHES * batch
        for at in range(0, len(order), window):
            part = order[at : at + window]
            part = part[np.argsort(lengths[part], kind="stable")]
            batches = [part[k : k + batch] for k in range(0, len(part), batch)]
            for turn in rng.permutation(len(batches)):
                yield from (int(i) for i in batches[turn])
