"""Turn a decoded photo into a model's input tensor, exactly as timm's evaluation transform does."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from services.common.catalogue import InputSpec

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Resize, centre crop and normalise. Hashable; its digest is part of a model's identity."""

    size_px: int
    """Edge of the square that the model sees."""
    crop_pct: float = 1.0
    """The resize goes to floor(size_px / crop_pct) before the crop."""
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    mode: str = "center"
    """center: the short edge is resized and the aspect ratio kept. squash: both edges are."""
    jpeg_draft: bool = False
    """Large JPEGs are decoded at a half, a quarter or an eighth of their size."""

    @classmethod
    def from_spec(cls, spec: InputSpec) -> Preprocessing:
        """From a catalogue entry's input."""
        return cls(**spec.model_dump())

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 hex of the parameters."""
        fields = dataclasses.asdict(self)
        if not fields["jpeg_draft"]:  # as before there was a choice: what is stored is found again
            del fields["jpeg_draft"]
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()

    @property
    def decode_px(self) -> int:
        """Pixels that the edges of a decoded image must have at least; 0 means its own size.

        Twice what the resize makes of them, so that it still has something to average.
        """
        return 2 * math.floor(self.size_px / self.crop_pct) if self.jpeg_draft else 0

    @property
    def resampling(self) -> Image.Resampling:
        """Pillow's name of the interpolation."""
        return _FILTERS[self.interpolation]

    def pixels(self, image: Image.Image) -> Image.Image:
        """The RGB square that the model sees, before normalising."""
        scale = math.floor(self.size_px / self.crop_pct)
        resized = image.resize(self._resized(image.size, scale), self.resampling)
        left = round((resized.width - self.size_px) / 2.0)
        top = round((resized.height - self.size_px) / 2.0)
        return resized.crop((left, top, left + self.size_px, top + self.size_px))

    def _resized(self, size: tuple[int, int], scale: int) -> tuple[int, int]:
        width, height = size
        if self.mode == "squash":
            return scale, scale
        if width <= height:
            return scale, int(scale * height / width)
        return int(scale * width / height), scale

    def square(self, image: Image.Image) -> Tensor:
        """uint8 [size, size, 3] from an RGB image of any size: all but normalising.

        Raises ValueError for other images.
        """
        if image.mode != "RGB":
            raise ValueError(f"an RGB image is needed, not {image.mode}")
        return as_square(self.pixels(image))

    def __call__(self, image: Image.Image) -> Tensor:
        """fp32 [3, size, size] from an RGB image of any size. Raises ValueError for others."""
        if image.mode != "RGB":
            raise ValueError(f"an RGB image is needed, not {image.mode}")
        return self.normalise(self.pixels(image))

    def normalise(self, square: Image.Image) -> Tensor:
        """fp32 [3, size, size] from the RGB square that `pixels` makes."""
        # In numpy: one thread does this in a fraction of the time in which torch wakes a second.
        planes = np.asarray(square, dtype=np.uint8).transpose(2, 0, 1)
        array = planes.astype(np.float32, order="C").reshape(3, -1)
        array /= np.float32(255)
        array -= np.asarray(self.mean, np.float32)[:, None]
        array /= np.asarray(self.std, np.float32)[:, None]
        return torch.from_numpy(array.reshape(planes.shape))


def as_square(image: Image.Image) -> Tensor:
    """uint8 [height, width, 3] of an RGB image."""
    return torch.from_numpy(np.array(image, dtype=np.uint8))
