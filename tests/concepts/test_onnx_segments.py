"""The exported segment rule cuts as the served one does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from services.concepts.onnx_export import _touching
from services.concepts.onnx_segments import cluster_script
from services.concepts.segments import cluster_tokens


def _maps(count: int, rows: int, columns: int) -> np.ndarray:
    """Random maps of 16 features, averaged over neighbours so that segments have some extent."""
    rng = np.random.default_rng(rows * columns)
    wide = rng.normal(size=(count, rows + 2, columns + 2, 16))
    sums = [wide[:, i : i + rows, j : j + columns] for i in range(3) for j in range(3)]
    return np.mean(sums, axis=0).astype(np.float32)


@pytest.mark.parametrize(("rows", "columns"), [(9, 9), (7, 7), (3, 5), (2, 2)])
def test_owners_are_the_smallest_tokens_of_the_segments(rows: int, columns: int) -> None:
    cluster, segments = cluster_script(), min(8, rows * columns)
    for tokens in _maps(6, rows, columns):
        labels = cluster_tokens(tokens[None], segments).reshape(-1)
        first = np.array([np.flatnonzero(labels == label)[0] for label in labels])
        flat = torch.from_numpy(tokens.reshape(rows * columns, -1))
        owner = cluster(flat, _touching(rows, columns), rows * columns - segments)
        np.testing.assert_array_equal(owner.numpy(), first)


def test_equal_tokens_tie_to_the_smallest_pair() -> None:
    tokens = np.ones((1, 3, 3, 4), np.float32)
    labels = cluster_tokens(tokens, 4).reshape(-1)
    first = np.array([np.flatnonzero(labels == label)[0] for label in labels])
    owner = cluster_script()(torch.ones(9, 4), _touching(3, 3), 5)
    np.testing.assert_array_equal(owner.numpy(), first)
