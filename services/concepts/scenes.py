"""Rendered scenes with known attributes: colour, pattern, texture, shape and everyday objects.

ImageNet's class names hold next to no attributes, so an encoder aligned on them alone has no
direction for "red" or "striped". Here surfaces and shaded blobs, single or in heaps as shops pile
their goods, are drawn with attributes known by construction. The numbers come from one seeded
generator; nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

Doubles = npt.NDArray[np.float64]
Generator = np.random.Generator

SIZE_PX = 260
LAYOUTS = ("fill", "single", "heap", "heap")
_BACKGROUNDS = ((235, 235, 235), (40, 40, 45), (120, 90, 60), (180, 170, 150), (90, 110, 80))
_Y, _X = np.mgrid[0:SIZE_PX, 0:SIZE_PX] / SIZE_PX


@dataclass(frozen=True)
class Scene:
    """What to draw; ``second`` is the pattern's colour. A surface that fills has no shape."""

    colour: tuple[float, float, float]
    second: tuple[float, float, float]
    pattern: str
    texture: str
    shape: str
    layout: str


def draw(generator: Generator, scene: Scene) -> Image.Image:
    """RGB image, 260 x 260.

    Raises:
        KeyError: a pattern, texture or shape that is not known.
    """
    surface = _surface(generator, scene)
    if scene.layout == "fill":
        pixels = surface * (1 + 0.15 * _noise(generator, (2, 3))[..., None])
    else:
        pixels = _blobs(generator, scene, surface)
    tint = np.array([generator.uniform(0.94, 1.06), 1.0, generator.uniform(0.92, 1.06)])
    pixels = pixels * generator.uniform(0.8, 1.12) * tint
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return image.filter(ImageFilter.GaussianBlur(generator.uniform(0.4, 1.2)))


def _noise(generator: Generator, cells: tuple[int, ...] = (4, 8, 16, 32, 64)) -> Doubles:
    """Smooth noise of several scales, zero mean, unit variance."""
    total = np.zeros((SIZE_PX, SIZE_PX))
    for count in cells:
        grid = Image.fromarray(generator.normal(size=(count, count)).astype(np.float32))
        grown = grid.resize((SIZE_PX, SIZE_PX), Image.Resampling.BICUBIC)
        total += np.asarray(grown) / np.sqrt(count)
    return np.asarray((total - total.mean()) / (total.std() + 1e-6))


def _surface(generator: Generator, scene: Scene) -> Doubles:
    share = PATTERNS[scene.pattern](generator)[..., None]
    base = np.array(scene.colour) * (1 - share) + np.array(scene.second) * share
    shaded = base * (1 + 0.06 * _noise(generator)[..., None])
    return np.asarray(shaded * TEXTURES[scene.texture](generator)[..., None])


def _blobs(generator: Generator, scene: Scene, surface: Doubles) -> Doubles:
    background = np.array(_BACKGROUNDS[generator.integers(len(_BACKGROUNDS))], dtype=np.float64)
    pixels = background * (1 + 0.08 * _noise(generator)[..., None])
    alone = scene.layout == "single"
    for _ in range(1 if alone else int(generator.integers(9, 18))):
        radius = generator.uniform(0.33, 0.45) if alone else generator.uniform(0.15, 0.22)
        x, y = generator.uniform(0.4, 0.6, 2) if alone else generator.uniform(0, 1, 2)
        turn = 0.0 if scene.shape == "round" else generator.uniform(-0.6, 0.6)
        skin = surface if alone else np.roll(surface, generator.integers(0, SIZE_PX, 2), (0, 1))
        pixels = _blob(pixels, skin, scene, (x, y, radius, turn))
    return pixels


def _blob(
    pixels: Doubles, skin: Doubles, scene: Scene, place: tuple[float, float, float, float]
) -> Doubles:
    """One shaded body over what is there, with a soft dark rim and, if shiny, a highlight."""
    x, y, radius, turn = place
    across = ((_X - x) * np.cos(turn) + (_Y - y) * np.sin(turn)) / radius
    along = (-(_X - x) * np.sin(turn) + (_Y - y) * np.cos(turn)) / radius
    distance = SHAPES[scene.shape](across, along)
    inside = (distance < 1)[..., None]
    lit = skin * (0.45 + 0.65 * np.sqrt(np.clip(1 - distance, 0, 1)))[..., None]
    if scene.texture == "shiny":
        squared = (_X - x + 0.3 * radius) ** 2 + (_Y - y + 0.35 * radius) ** 2
        lit = lit + 200 * np.exp(-squared / (0.12 * radius) ** 2)[..., None]
    rim = np.where((distance < 1.25)[..., None], 0.7, 1.0)
    return np.where(inside, lit, pixels * rim)


def _axes(generator: Generator) -> tuple[Doubles, Doubles, float]:
    """Two rotated, slightly wavy axes and how many periods fit along them."""
    turn = generator.uniform(0, np.pi)
    waves = _noise(generator) * generator.uniform(0.01, 0.03)
    first = _X * np.cos(turn) + _Y * np.sin(turn) + waves
    second = -_X * np.sin(turn) + _Y * np.cos(turn) + _noise(generator) * 0.02
    return first, second, generator.uniform(5, 14)


def _striped(generator: Generator) -> Doubles:
    first, _, periods = _axes(generator)
    return np.asarray(
        np.sin(2 * np.pi * periods * first) > generator.uniform(-0.3, 0.5), np.float64
    )


def _netted(generator: Generator) -> Doubles:
    first, second, periods = _axes(generator)
    lines = [np.abs(np.sin(np.pi * 1.8 * periods * axis)) < 0.22 for axis in (first, second)]
    return np.asarray(lines[0] | lines[1], np.float64)


def _checkered(generator: Generator) -> Doubles:
    first, second, periods = _axes(generator)
    return np.asarray((np.floor(0.7 * periods * first) + np.floor(0.7 * periods * second)) % 2)


def _two_toned(generator: Generator) -> Doubles:
    first, _, _ = _axes(generator)
    return np.asarray(1 / (1 + np.exp(-8 * (first - first.mean()))))


def _streaked(generator: Generator) -> Doubles:
    grid = Image.fromarray(generator.normal(size=(60, 4)).astype(np.float32))
    return np.asarray(
        np.asarray(grid.resize((SIZE_PX, SIZE_PX), Image.Resampling.BICUBIC)) > 0.5, np.float64
    )


def _discs(count: int, low: float, high: float) -> Callable[[Generator], Doubles]:
    def pattern(generator: Generator) -> Doubles:
        covered = np.zeros((SIZE_PX, SIZE_PX), dtype=bool)
        for _ in range(count):
            x, y = generator.uniform(size=2)
            covered |= (_X - x) ** 2 + (_Y - y) ** 2 < generator.uniform(low, high) ** 2
        return covered.astype(np.float64)

    return pattern


def _plain(generator: Generator) -> Doubles:
    return np.zeros((SIZE_PX, SIZE_PX))


def _dimpled(generator: Generator) -> Doubles:
    dots = np.full((SIZE_PX, SIZE_PX), 200, np.uint8)
    dots[tuple(generator.integers(0, SIZE_PX, (2, 900)))] = 120
    soft = Image.fromarray(dots).filter(ImageFilter.GaussianBlur(1))
    return np.asarray(soft, dtype=np.float64) / 200


PATTERNS: dict[str, Callable[[Generator], Doubles]] = {
    "plain": _plain,
    "striped": _striped,
    "netted": _netted,
    "spotted": _discs(18, 0.018, 0.035),
    "dotted": _discs(90, 0.010, 0.016),
    "speckled": _discs(350, 0.003, 0.007),
    "checkered": _checkered,
    "mottled": lambda g: np.asarray(_noise(g, (6, 12, 24)) > 0.3, np.float64),
    "streaked": _streaked,
    "two-toned": _two_toned,
    "cracked": lambda g: np.asarray(np.abs(_noise(g, (8, 16, 32))) < 0.12, np.float64),
}

TEXTURES: dict[str, Callable[[Generator], Doubles]] = {
    "smooth": lambda g: np.ones((SIZE_PX, SIZE_PX)),
    "shiny": lambda g: np.ones((SIZE_PX, SIZE_PX)),
    "bumpy": lambda g: np.asarray(1 + 0.12 * _noise(g, (40, 60))),
    "grainy": lambda g: 1 + 0.12 * g.normal(size=(SIZE_PX, SIZE_PX)),
    "wrinkled": lambda g: np.asarray(1 + 0.18 * np.sin(4 * _noise(g, (6, 12)))),
    "dimpled": _dimpled,
}

SHAPES: dict[str, Callable[[Doubles, Doubles], Doubles]] = {
    "round": lambda x, y: x**2 + y**2,
    "oval": lambda x, y: (x / 0.72) ** 2 + y**2,
    "elongated": lambda x, y: (x / 0.4) ** 2 + (y / 1.15) ** 2,
    "pear-shaped": lambda x, y: (x / (0.62 + 0.34 * np.tanh(2 * y + 0.2)).clip(0.2)) ** 2 + y**2,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) ** 2 * 1.2,
}
