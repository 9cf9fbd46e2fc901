"""The rendered reference images: fixed, varied, and their mean kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from services.common.errors import InvalidInput
from services.concepts.reference import manifest_digest, reference_images, reference_mean


def test_the_images_are_always_the_same_and_each_another() -> None:
    first, second = list(reference_images(8)), list(reference_images(8))
    assert manifest_digest(first) == manifest_digest(second)
    assert len({image.tobytes() for image in first}) == 8
    pixels = np.stack([np.asarray(image) for image in first]).astype(float)
    assert pixels.shape == (8, 256, 256, 3)
    assert pixels.std(axis=(1, 2, 3)).min() > 5


def test_the_mean_is_over_all_regions_and_is_kept(tmp_path: Path) -> None:
    path, calls = tmp_path / "folder" / "mean.safetensors", []

    def rows(images: list[Image.Image]) -> list[np.ndarray]:
        calls.append(len(images))
        return [np.array([[1, 0], [0, 1], [0, 1]], np.float16) for _ in images]

    mean = reference_mean(path, rows)
    np.testing.assert_allclose(mean, [1 / 3, 2 / 3], rtol=1e-6)
    made = sum(calls)
    np.testing.assert_array_equal(reference_mean(path, rows), mean)
    assert sum(calls) == made


def test_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "mean.safetensors"
    path.write_bytes(b"not safetensors")
    with pytest.raises(InvalidInput):
        reference_mean(path, lambda images: [])
