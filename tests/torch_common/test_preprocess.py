from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from services.common.catalogue import InputSpec, load_catalogue
from services.torch_common.preprocess import Preprocessing

SIZES = [(464, 348), (348, 464), (224, 224), (1, 1), (97, 1013), (31, 32)]


def photo(width: int, height: int) -> Image.Image:
    random = np.random.default_rng(width * 10_000 + height)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("crop_pct", [0.875, 0.882, 0.89, 1.0])
@pytest.mark.parametrize("mode", ["center", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_equals_timms_evaluation_transform(
    size: tuple[int, int], crop_pct: float, mode: str, interpolation: str
) -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    ours = Preprocessing(96, crop_pct, interpolation, mean, std, mode)
    theirs = create_transform(
        (3, 96, 96),
        interpolation=interpolation,
        mean=mean,
        std=std,
        crop_pct=crop_pct,
        crop_mode=mode,
    )
    image = photo(*size)
    assert torch.equal(ours(image), theirs(image))


def test_digest_follows_every_field() -> None:
    base = Preprocessing(224)
    changed: dict[str, object] = {
        "size_px": 225,
        "crop_pct": 0.9,
        "interpolation": "bilinear",
        "mean": (0.5, 0.5, 0.4),
        "std": (0.5, 0.5, 0.4),
        "mode": "squash",
        "jpeg_draft": True,
    }
    assert set(changed) == {field.name for field in dataclasses.fields(base)}
    digests = {dataclasses.replace(base, **{k: v}).digest for k, v in changed.items()}  # type: ignore[arg-type]
    assert len(digests | {base.digest}) == len(changed) + 1
    assert base.digest == Preprocessing(224).digest


def test_from_catalogue() -> None:
    spec = load_catalogue().image_model("efficientnet-lite2").input
    assert isinstance(spec, InputSpec)
    tensor = Preprocessing.from_spec(spec)(photo(300, 200))
    assert tuple(tensor.shape) == (3, 260, 260)
    assert tensor.dtype == torch.float32


def test_other_modes_are_refused() -> None:
    with pytest.raises(ValueError, match="RGB"):
        Preprocessing(224)(Image.new("L", (4, 4)))
