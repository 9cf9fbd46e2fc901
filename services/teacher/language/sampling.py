"""Sparse targets of a sequence: unbiased draws from the teacher's softmax, or its most probable
ids.

Random sampling KD (arXiv 2503.16870): ids are drawn from the softmax; counts over draws is an
unbiased estimate of it, whatever the number of draws, as long as that number does not depend on
what was drawn. It is therefore chosen from the distributions alone: the largest number whose
expected bytes fit the budget.

The paper draws independently. Here the N draws of a token are systematic, as survey sampling calls
it: points at equal distances in the running sum, from one random offset. Each count is then N p
rounded up or down, N p in expectation, with a variance of at most 1/4 where independent draws have
N p (1 - p). They store E[U] = sum over ids of min(1, N p) unique ids.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from services.common.tensors import Array

MIN_DRAWS = 8
MAX_DRAWS = 4096
MARGIN = 0.97
"""Share of the budget that is planned for, since only the expected size is known."""
_BLOCK = 256
_DRAWS_AT_ONCE = 1 << 14
_ID_BOUNDS = (1 << 7, 1 << 14, 1 << 21)
_BIN_SHIFT = 20
_BINS = 127 << 3 | 1  # up to 1.0, whose exponent is 127
_EDGES = (np.arange(_BINS + 1, dtype=np.int32) << _BIN_SHIFT).view(np.float32).astype(np.float64)
_MIDDLES = np.minimum((_EDGES[:-1] + _EDGES[1:]) / 2, 1.0)


@dataclass(frozen=True)
class Kept:
    """What is kept of some rows: ids ascending within a row, and counts or log-probabilities."""

    ids: Array
    row: Array
    values: Array


class SizeModel:
    """Expected payload bytes of sampled targets as a function of the number of draws.

    Holds how many ids there are of each probability (in bins of an eighth of an octave) and of each
    size when stored. An id counts by its own varint, which is never shorter than the difference
    that is stored, so that the estimate is on the safe side.
    """

    def __init__(self, parts: Sequence[Tensor]) -> None:
        """`parts` are rows of probabilities, float32 [rows, vocabulary] each."""
        self._rows = sum(len(part) for part in parts)
        counts = np.zeros((len(_ID_BOUNDS) + 1, _BINS))
        for part in parts:
            for size, (low, high) in enumerate(pairwise((0, *_ID_BOUNDS, part.shape[1]))):
                counts[size] += _histogram(part[:, low:high])
        used = counts > 0
        self._count = counts[used]
        self._id_bytes = 1 + np.nonzero(used)[0]
        self._p = np.broadcast_to(_MIDDLES, counts.shape)[used]

    def expected(self, draws: int) -> float:
        """Bytes per row."""
        there = np.minimum(1.0, draws * self._p)
        count_bytes = 1 + (draws * self._p >= 128)
        stored = float((self._count * there * (self._id_bytes + count_bytes)).sum())
        return 1.0 + stored / max(self._rows, 1)  # one byte says how many ids follow

    def draws(self, bytes_per_row: float) -> int:
        """The most draws whose expected bytes fit, within MIN_DRAWS and MAX_DRAWS."""
        low, high = MIN_DRAWS, MAX_DRAWS
        while low < high:
            middle = (low + high + 1) // 2
            if self.expected(middle) <= bytes_per_row:
                low = middle
            else:
                high = middle - 1
        return low


def _histogram(part: Tensor) -> Array:
    """How many of `part`'s values are in each bin: the exponent and three bits of a float32."""
    bins = part.reshape(-1).contiguous().view(torch.int32) >> _BIN_SHIFT
    return torch.bincount(bins, minlength=_BINS)[:_BINS].cpu().numpy()


def seeded(seed: int, digest: bytes) -> np.random.Generator:
    """The generator of one sequence's draws."""
    state = hashlib.sha256(seed.to_bytes(8, "little", signed=True) + digest).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(state, "little")))


def draw(probabilities: Tensor, draws: int, random: np.random.Generator) -> Kept:
    """Draw `draws` ids per row, systematically; values are counts, int64.

    `probabilities` float32 [rows, vocabulary]. Inversion in two steps: first a block of ids by the
    blocks' sums, then the id within it, so that running sums (in float64, or the last ids of a
    large vocabulary would lose their share) are made of the blocks drawn alone.
    """
    rows, vocab = probabilities.shape
    blocks = functional.pad(probabilities, (0, -vocab % _BLOCK)).view(rows, -1, _BLOCK)
    sums = blocks.sum(-1).double().cumsum(1)
    offsets = (random.random((rows, 1)) + np.arange(draws)) / draws
    points = torch.from_numpy(offsets).to(sums.device) * sums[:, -1:]
    step = max(1, _DRAWS_AT_ONCE // draws)
    parts = [
        _within(blocks[at : at + step], sums[at : at + step], points[at : at + step])
        for at in range(0, rows, step)
    ]
    ids = torch.cat(parts).clamp_max_(vocab - 1)
    keys = ids + vocab * torch.arange(rows, device=ids.device)[:, None]
    unique, counts = torch.unique(keys, return_counts=True)
    found = unique.cpu().numpy()
    return Kept(found % vocab, found // vocab, counts.cpu().numpy())


def _within(blocks: Tensor, sums: Tensor, points: Tensor) -> Tensor:
    """Ids at `points` [rows, draws] of the running sum whose value after each block is `sums`."""
    block = torch.searchsorted(sums, points, right=True).clamp_max_(sums.shape[1] - 1)
    before = functional.pad(sums, (1, 0)).gather(1, block)
    rows = torch.arange(len(blocks), device=blocks.device)[:, None]
    running = blocks[rows, block].cumsum(-1, dtype=torch.float64)
    inside = torch.searchsorted(running, (points - before)[..., None], right=True)[..., 0]
    return block * _BLOCK + inside.clamp_max_(_BLOCK - 1)


def most_probable(probabilities: Tensor, count: int) -> Kept:
    """The `count` most probable ids per row; values are log-probabilities, float32."""
    top = torch.topk(probabilities, count, dim=1)
    ids, order = torch.sort(top.indices, dim=1)
    values = torch.log(top.values.gather(1, order).clamp_min(1e-7))
    row = np.repeat(np.arange(len(ids)), count)
    return Kept(ids.reshape(-1).cpu().numpy(), row, values.reshape(-1).cpu().numpy())


def ids_for(bytes_per_row: float, vocab: int) -> int:
    """How many of the most probable ids fit a row of so many bytes: two bytes of log-probability
    each, and an id whose difference to the one before is taken to be below twice the mean."""
    most = min(vocab, int(max(bytes_per_row, 0) // 3))

    def stored(count: int) -> int:
        return 2 + count * (3 + sum(2 * vocab / count > bound for bound in _ID_BOUNDS))

    return max((n for n in range(1, most + 1) if stored(n) <= bytes_per_row), default=1)
