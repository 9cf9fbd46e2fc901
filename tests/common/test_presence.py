"""Presence against a plain loop, golden numbers for other implementations, and hostile input."""

from __future__ import annotations

import numpy as np
import pytest

from services.common.presence import (
    centred_directions,
    positive_share,
    presence,
    presence_values,
    region_cosines,
)


def plain(regions, offsets, texts, region_mean, text_mean):
    """The definition, written down as it is read."""
    values = np.zeros((len(offsets) - 1, len(texts)))
    where = np.zeros(values.shape, int)
    for image, (first, last) in enumerate(zip(offsets[:-1], offsets[1:], strict=True)):
        for concept, text in enumerate(texts):
            direction = text - text_mean
            cosines = []
            for region in regions[first:last].astype(np.float64):
                vector = region - region_mean
                length = np.linalg.norm(vector) * np.linalg.norm(direction)
                cosines.append(vector @ direction / length if length else 0.0)
            where[image, concept] = int(np.argmax(cosines))
            values[image, concept] = max(0.0, max(cosines))
    return values, where


@pytest.fixture
def case():
    generator = np.random.default_rng(3)
    counts = generator.integers(1, 7, 40)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    regions = generator.normal(size=(offsets[-1], 12)).astype(np.float16)
    texts = generator.normal(size=(9, 12)).astype(np.float32)
    return regions, offsets, texts, generator.normal(size=12) * 0.3, texts.mean(axis=0)


def test_presence_is_what_the_formula_says(case):
    found = presence(*case)
    values, where = plain(*case)
    np.testing.assert_allclose(found.values, values, atol=2e-6)
    assert (found.region == where).all()
    assert (found.values == 0).any()
    assert (found.values > 0).any()


def test_images_do_not_depend_on_how_they_are_cut_into_chunks(case, monkeypatch):
    whole = presence(*case)
    monkeypatch.setattr("services.common.presence._ROWS_PER_CHUNK", 5)
    parts = presence(*case)
    np.testing.assert_allclose(parts.values, whole.values, atol=1e-6)
    assert (parts.region == whole.region).all()


def test_values_alone_are_the_same_bits(case):
    assert (presence_values(*case) == presence(*case).values).all()


def test_golden_numbers():
    regions = np.array([[1, 0, 0], [0, 2, 0], [0, 0, 3], [-1, -1, 0]], np.float16)
    texts = np.array([[1, 0, 0], [0, 1, 0], [0, 0.6, 0.8]], np.float32)
    found = presence(regions, [0, 2, 4], texts, [0.25, 0.25, 0.25], [0.0, 0.0, 0.0])
    expected = [[0.904534, 0.980196, 0.476095], [0.0, 0.0, 0.739369]]
    np.testing.assert_allclose(found.values, expected, atol=1e-6)
    assert found.region.tolist() == [[0, 1, 1], [0, 0, 0]]


def test_a_tie_goes_to_the_first_region():
    regions = np.ones((3, 2), np.float16)
    found = presence(regions, [0, 3], np.eye(2, dtype=np.float32), [0.0, 0.0], [0.0, 0.0])
    assert found.region.tolist() == [[0, 0]]


def test_a_region_at_the_mean_has_no_presence():
    found = presence([[0.5, 0.5]], [0, 1], [[1.0, 0.0]], [0.5, 0.5], [0.0, 0.0])
    assert found.values.tolist() == [[0.0]]


def test_share_of_positive_cosines(case):
    regions, _, texts, region_mean, text_mean = case
    cosines = region_cosines(regions, texts, region_mean, text_mean)
    assert positive_share(regions, texts, region_mean, text_mean) == (cosines > 0).mean()
    assert positive_share(regions[:0], texts, region_mean, text_mean) == 0.0


def test_directions_have_length_one_or_zero():
    directions = centred_directions([[3.0, 4.0], [1.0, 1.0]], [1.0, 1.0])
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), [1.0, 0.0], atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        {"offsets": [0, 2, 2, 4]},
        {"offsets": [1, 4]},
        {"offsets": [0, 5]},
        {"offsets": [0.0, 4.0]},
        {"offsets": [[0, 4]]},
        {"regions": np.full((4, 3), np.nan, np.float16)},
        {"regions": np.zeros((4, 2), np.float16)},
        {"texts": [[np.inf, 0.0, 0.0]]},
        {"texts": [[1.0, 0.0]]},
        {"region_mean": [0.0]},
        {"text_mean": [np.nan, 0.0, 0.0]},
    ],
)
def test_what_does_not_fit_is_refused(change):
    arguments = {
        "regions": np.ones((4, 3), np.float16),
        "offsets": [0, 2, 4],
        "texts": np.ones((1, 3), np.float32),
        "region_mean": np.zeros(3),
        "text_mean": np.zeros(3),
    }
    presence(**arguments)
    with pytest.raises(ValueError, match=r"\w"):
        presence(**(arguments | change))
