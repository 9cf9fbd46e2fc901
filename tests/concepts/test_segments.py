"""Segments are connected, similar inside, and depend on an image's own tokens alone."""

from __future__ import annotations

import numpy as np
import pytest

from services.concepts.segments import block_means, cluster_tokens, segment_means


def connected(labels, label):
    cells = {tuple(cell) for cell in np.argwhere(labels == label)}
    frontier = [next(iter(cells))]
    reached = set(frontier)
    while frontier:
        row, column = frontier.pop()
        near = {(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)}
        fresh = (near & cells) - reached
        reached |= fresh
        frontier.extend(fresh)
    return reached == cells


def plain_ward(tokens, segments):
    """Ward with four neighbours, by the definition: merge what raises the squared error least."""
    height, width, _ = tokens.shape
    unit = tokens / np.linalg.norm(tokens, axis=2, keepdims=True)
    clusters = [[(row, column)] for row in range(height) for column in range(width)]
    while len(clusters) > segments:
        best = None
        for i, first in enumerate(clusters):
            for j in range(i + 1, len(clusters)):
                second = clusters[j]
                if any(abs(a - c) + abs(b - d) == 1 for a, b in first for c, d in second):
                    gap = np.mean([unit[p] for p in first], axis=0)
                    gap = gap - np.mean([unit[p] for p in second], axis=0)
                    cost = gap @ gap * len(first) * len(second) / (len(first) + len(second))
                    if best is None or cost < best[0]:
                        best = (cost, i, j)
        _, i, j = best
        clusters[i] += clusters.pop(j)
    return {frozenset(cluster) for cluster in clusters}


def test_it_is_ward_clustering():
    tokens = np.random.default_rng(0).normal(size=(1, 4, 5, 6)).astype(np.float32)
    labels = cluster_tokens(tokens, 5)[0]
    found = {
        frozenset(tuple(map(int, cell)) for cell in np.argwhere(labels == k)) for k in range(5)
    }
    assert found == plain_ward(tokens[0].astype(np.float64), 5)


def test_areas_of_their_own_are_found():
    tokens = np.zeros((1, 6, 6, 4), np.float32)
    truth = np.zeros((6, 6), int)
    truth[:3, 3:], truth[3:, :3], truth[3:, 3:] = 1, 2, 3
    tokens[0] = np.eye(4)[truth]
    assert (cluster_tokens(tokens, 4)[0] == truth).all()


def test_segments_are_connected_and_numbered_in_reading_order():
    tokens = np.random.default_rng(1).normal(size=(3, 9, 9, 16)).astype(np.float32)
    for labels in cluster_tokens(tokens, 8):
        assert set(labels.ravel()) == set(range(8))
        assert all(connected(labels, label) for label in range(8))
        first = [int(np.flatnonzero(labels.ravel() == label)[0]) for label in range(8)]
        assert first == sorted(first)


def test_neighbours_in_a_batch_change_nothing():
    tokens = np.random.default_rng(2).normal(size=(5, 7, 7, 8)).astype(np.float32)
    together = cluster_tokens(tokens, 6)
    apart = np.concatenate([cluster_tokens(token[None], 6) for token in tokens])
    assert (together == apart).all()


def test_fewer_tokens_than_segments_leave_one_each():
    tokens = np.random.default_rng(4).normal(size=(1, 1, 3, 2)).astype(np.float32)
    assert cluster_tokens(tokens, 8).tolist() == [[[0, 1, 2]]]


def test_equal_tokens_still_give_the_count():
    labels = cluster_tokens(np.ones((2, 4, 4, 3), np.float32), 3)
    assert (labels.max(axis=(1, 2)) == 2).all()


def test_means_of_segments_make_up_the_image():
    tokens = np.random.default_rng(5).normal(size=(2, 5, 5, 3)).astype(np.float32)
    labels = cluster_tokens(tokens, 4)
    means = segment_means(tokens, labels, 4)
    sizes = np.stack([np.bincount(label.ravel(), minlength=4) for label in labels])
    whole = (means * sizes[..., None]).sum(axis=1) / 25
    np.testing.assert_allclose(whole, tokens.mean(axis=(1, 2)), atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "segments"), [((1, 17, 16, 2), 4), ((4, 4, 2), 4), ((1, 4, 4, 2), 0)]
)
def test_what_does_not_fit_is_refused(shape, segments):
    with pytest.raises(ValueError, match=r"tokens|segments"):
        cluster_tokens(np.ones(shape, np.float32), segments)


def test_blocks_are_the_adaptive_averages_of_a_grid() -> None:
    import torch

    rng = np.random.default_rng(0)
    for shape in ((9, 9), (7, 8), (3, 5)):
        tokens = rng.normal(size=(2, *shape, 4)).astype(np.float32)
        pooled = torch.nn.functional.adaptive_avg_pool2d(
            torch.from_numpy(tokens).permute(0, 3, 1, 2), 3
        )
        expected = pooled.permute(0, 2, 3, 1).reshape(2, 9, 4).numpy()
        np.testing.assert_allclose(block_means(tokens), expected, atol=1e-6)
    assert block_means(np.zeros((1, 2, 9, 4), np.float32)).shape == (1, 0, 4)
