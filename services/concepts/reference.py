"""The reference images behind an encoder's default `mu`: rendered, so that no data has to be
shipped.

Dead leaves (Lee, Mumford, Huang 2001: discs, ellipses and polygons of random size that cover each
other) have the edges, scales and occlusions of photographs; with a shaded background and grain they
are the cheapest images that an encoder treats as scenes. They come from one seeded generator, so
the manifest is fixed; its digest is stored beside the mean. A job on real photos does better to
take the mean of its own training images, which leaves no concept at zero throughout a narrow
domain.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from services.common.errors import InvalidInput
from services.common.tensors import Array, pack_arrays, unpack_arrays

COUNT = 96
SIZE_PX = 256
_SEED = 20240618
_LEAVES = 120
RULE = f"dead-leaves-1 {_SEED} {COUNT}"
"""What the images are drawn by: part of the key of a stored mean, raised when they change."""


def reference_images(count: int = COUNT) -> Iterator[Image.Image]:
    """Yield the reference images, RGB, 256 x 256; always the same."""
    generator = np.random.Generator(np.random.PCG64(_SEED))
    for _ in range(count):
        yield _scene(generator)


def _scene(generator: np.random.Generator) -> Image.Image:
    palette = _palette(generator)
    image = _background(generator, palette)
    draw = ImageDraw.Draw(image)
    radii = np.sort(_radii(generator, int(generator.integers(3, _LEAVES))))[::-1]
    for radius in radii:
        _leaf(generator, draw, float(radius), palette)
    soft = image.filter(ImageFilter.GaussianBlur(float(generator.uniform(0.3, 1.5))))
    grain = generator.normal(0.0, generator.uniform(1.0, 10.0), (SIZE_PX, SIZE_PX, 1))
    pixels = np.asarray(soft).astype(np.float64) * _light(generator) + grain
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def _palette(generator: np.random.Generator) -> npt.NDArray[np.float64]:
    """Six muted colours, [6, 3], 0 to 255: photographs differ in lightness more than in hue."""
    lightness = generator.uniform(50, 205) + generator.normal(0, 45, (6, 1))
    tint = generator.normal(0, 18, (1, 3)) + generator.normal(0, 22, (6, 3))
    return np.clip(lightness + tint, 5, 250)


def _background(generator: np.random.Generator, palette: npt.NDArray[np.float64]) -> Image.Image:
    corners = palette[generator.integers(0, 6, 4)].reshape(2, 2, 3)
    small = Image.fromarray(corners.astype(np.uint8))
    return small.resize((SIZE_PX, SIZE_PX), Image.Resampling.BICUBIC)


def _radii(generator: np.random.Generator, count: int) -> npt.NDArray[np.float64]:
    """Radii of density r^-3 from 6 to 110 pixels, which makes the scenes scale invariant."""
    low, high = 6.0**-2, 110.0**-2
    return np.asarray(generator.uniform(high, low, count) ** -0.5)


def _leaf(
    generator: np.random.Generator,
    draw: ImageDraw.ImageDraw,
    radius: float,
    palette: npt.NDArray[np.float64],
) -> None:
    x, y = generator.uniform(0, SIZE_PX, 2)
    colour = palette[generator.integers(0, 6)] + generator.normal(0, 12, 3)
    fill = tuple(int(v) for v in np.clip(colour, 0, 255))
    stretch, corners = generator.uniform(0.5, 1.0), int(generator.integers(3, 9))
    if corners > 5:
        draw.ellipse(
            (x - radius, y - radius * stretch, x + radius, y + radius * stretch), fill=fill
        )
        return
    turn = generator.uniform(0, math.tau)
    angles = [turn + math.tau * k / corners for k in range(corners)]
    draw.polygon(
        [(x + radius * math.cos(a), y + radius * stretch * math.sin(a)) for a in angles], fill=fill
    )


def _light(generator: np.random.Generator) -> npt.NDArray[np.float64]:
    """Brightness falling off in one direction, [S, S, 1]."""
    axis = np.linspace(-1.0, 1.0, SIZE_PX)
    slope_x, slope_y = generator.uniform(-0.3, 0.3, 2)
    return np.asarray(1.0 + slope_x * axis[None, :, None] + slope_y * axis[:, None, None])


def manifest_digest(images: list[Image.Image]) -> str:
    """SHA-256 hex over the images' pixels in order."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(hashlib.sha256(image.tobytes()).digest())
    return digest.hexdigest()


def reference_mean(
    path: Path, regions_of: Callable[[list[Image.Image]], list[Array]]
) -> npt.NDArray[np.float32]:
    """Return `mu`, float32 [D]: the mean region row over the reference images.

    `path` keeps it; without that file `regions_of` is called with batches of images and returns one
    [R, D] array per image.
    """
    if path.is_file():
        return _checked(unpack_arrays(path.read_bytes(), what=path.name))
    images = list(reference_images(COUNT))
    rows = [
        row.astype(np.float64)
        for at in range(0, len(images), 16)
        for row in regions_of(images[at : at + 16])
    ]
    mean = np.asarray(np.concatenate(rows).mean(axis=0), dtype=np.float32)
    written = pack_arrays({"mean": mean}, {"manifest": manifest_digest(images)})
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_bytes(written)
    partial.replace(path)
    return mean


def _checked(arrays: dict[str, Array]) -> npt.NDArray[np.float32]:
    mean = arrays.get("mean")
    if mean is None or mean.ndim != 1 or not np.isfinite(mean).all():
        raise InvalidInput("the stored reference mean is damaged; remove it and start again")
    return np.asarray(mean, dtype=np.float32)
