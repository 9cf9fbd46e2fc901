"""Cut an image into connected segments by clustering the dense tokens of one forward pass.

Tokens start as clusters of their own; the two neighbouring clusters whose union raises the
within-cluster variance least (Ward's criterion on unit tokens, kept current by the Lance-Williams
formula) are merged until ``segments`` are left. Only clusters that touch (four neighbours) are
merged, so a segment is one connected area of similar embeddings. All images of a batch merge in
step; ties go to the smallest index, and numpy's argmin is exact about that, so the cut depends on
the tokens alone.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from services.common.blocks import block_bounds

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

DEFAULT_SEGMENTS = 8
MAX_TOKENS = 256


def cluster_tokens(tokens: Floats, segments: int = DEFAULT_SEGMENTS) -> npt.NDArray[np.uint8]:
    """Label map ``[B, h, w]`` of connected segments, numbered 0.. in reading order of their first
    token.

    Args:
        tokens: finite ``[B, h, w, D]``, at most 256 tokens an image (pool a finer map first).
        segments: how many segments to leave, 1 to 254; an image of fewer tokens has one each.

    Raises:
        ValueError: not four axes, no or too many tokens, or a segment count out of range.
    """
    if tokens.ndim != 4 or not 1 <= tokens.shape[1] * tokens.shape[2] <= MAX_TOKENS:
        raise ValueError(
            f"tokens {tokens.shape} are not [B, h, w, D] with 1 to {MAX_TOKENS} tokens"
        )
    if not 1 <= segments <= 254:
        raise ValueError(f"{segments} segments are not between 1 and 254")
    batch, height, width, _ = tokens.shape
    merge = _Merging(
        _ward_distances(tokens.reshape(batch, height * width, -1)), _touching(height, width)
    )
    for _ in range(height * width - segments):
        merge.step()
    return _reading_order(merge.owner).reshape(batch, height, width)


def segment_means(tokens: Floats, labels: npt.NDArray[np.uint8], segments: int) -> Floats:
    """Mean token ``[B, segments, D]`` of each label; a label that no token has gives zeros.

    Tokens are ``[B, h, w, D]``, labels ``[B, h, w]``. A mean of tokens is what pooling that area
    would give for an encoder that averages.
    """
    batch, height, width, dim = tokens.shape
    member = labels.reshape(batch, 1, height * width) == np.arange(segments)[None, :, None]
    weight = member / np.maximum(member.sum(axis=2, keepdims=True), 1)
    return np.asarray(weight.astype(np.float32) @ tokens.reshape(batch, height * width, dim))


class _Merging:
    """State of the agglomeration of a batch: distances, who touches whom, sizes, owner of each
    token.
    """

    def __init__(self, distance: Floats, touching: npt.NDArray[np.bool_]) -> None:
        batch, tokens, _ = distance.shape
        self.distance = distance
        self.touching = np.repeat(touching[None], batch, axis=0)
        self.cost = np.where(self.touching, distance, np.float32(np.inf))
        self.size = np.ones((batch, tokens), np.float32)
        self.owner: Ints = np.repeat(np.arange(tokens)[None], batch, axis=0)
        self._image = np.arange(batch)

    def step(self) -> None:
        """Merge, in every image, the cheapest pair of touching clusters (j into i, i < j)."""
        image, tokens = self._image, self.size.shape[1]
        pair = self.cost.reshape(len(image), -1).argmin(axis=1)
        first, second = pair // tokens, pair % tokens
        keep, gone = np.minimum(first, second), np.maximum(first, second)
        merged = self._merged_distance(keep, gone)
        neighbours = self.touching[image, keep] | self.touching[image, gone]
        neighbours[image, keep] = neighbours[image, gone] = False
        self.size[image, keep] += self.size[image, gone]
        self._write(keep, merged, neighbours)
        self._write(gone, np.full_like(merged, np.inf), np.zeros_like(neighbours))
        self.owner = np.where(self.owner == gone[:, None], keep[:, None], self.owner)

    def _merged_distance(self, keep: Ints, gone: Ints) -> Floats:
        """Lance-Williams for Ward: distance of every cluster to the union."""
        image = self._image
        n_i, n_j = self.size[image, keep, None], self.size[image, gone, None]
        between = self.distance[image, keep, gone, None]
        total = (
            (n_i + self.size) * self.distance[image, keep]
            + (n_j + self.size) * self.distance[image, gone]
            - self.size * between
        )
        return np.asarray(total / (n_i + n_j + self.size))

    def _write(self, cluster: Ints, distance: Floats, neighbours: npt.NDArray[np.bool_]) -> None:
        image = self._image
        self.distance[image, cluster] = self.distance[image, :, cluster] = distance
        self.touching[image, cluster] = self.touching[image, :, cluster] = neighbours
        cost = np.where(neighbours, distance, np.float32(np.inf))
        self.cost[image, cluster] = self.cost[image, :, cluster] = cost


def _ward_distances(tokens: Floats) -> Floats:
    """Half squared distances ``[B, N, N]`` between unit tokens: what merging two single tokens
    costs.
    """
    unit = tokens.astype(np.float32)
    unit = unit / np.maximum(np.linalg.norm(unit, axis=2, keepdims=True), 1e-12)
    return np.asarray(np.maximum(1.0 - unit @ unit.transpose(0, 2, 1), 0.0), dtype=np.float32)


def _touching(height: int, width: int) -> npt.NDArray[np.bool_]:
    """Four-neighbour adjacency ``[N, N]`` of a grid in reading order."""
    row, column = np.divmod(np.arange(height * width), width)
    steps = np.abs(row[:, None] - row) + np.abs(column[:, None] - column)
    return np.asarray(steps == 1)


def _reading_order(owner: Ints) -> npt.NDArray[np.uint8]:
    """Number the owners of each row 0.. in order; an owner is its smallest token."""
    tokens = owner.shape[1]
    is_owner = (owner == np.arange(tokens)).astype(np.int64)
    rank = np.cumsum(is_owner, axis=1) - 1
    return np.take_along_axis(rank, owner, axis=1).astype(np.uint8)


def block_means(tokens: Floats) -> Floats:
    """Mean of the cells ``[n, h, w, D]`` in each block of `services.common.blocks`, ``[n, blocks,
    D]``."""
    count, rows, columns, dim = tokens.shape
    means = np.zeros((count, len(block_bounds(rows, columns)), dim), tokens.dtype)
    for at, (top, bottom, left, right) in enumerate(block_bounds(rows, columns)):
        means[:, at] = tokens[:, top:bottom, left:right].mean(axis=(1, 2))
    return means
