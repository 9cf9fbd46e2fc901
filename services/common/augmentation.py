"""Which view of an image is seen: decided by digest, view, policy and seed alone.

Nothing here knows pixels. A view's crop is a part of the decoded image, whatever size it is then
resized to, so that a teacher and its students, with inputs of different sizes, see the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import random
from dataclasses import dataclass

from stillhouse.common.v1 import items_pb2

from services.common.errors import InvalidInput

MAX_VIEWS = 64
_VERSION = 1
"""Changes whenever the same digest, view, policy and seed would give other pixels."""
NONE = "none"
Range = tuple[float, float]


@dataclass(frozen=True)
class Policy:
    """What views are drawn from. Factors of 1 and shifts of 0 leave colours as they are."""

    area: Range
    """Share of the image's area that a crop holds."""
    aspect: Range
    """Width over height of a crop, in pixels of the image."""
    mirrored: float
    """Probability."""
    brightness: Range = (1.0, 1.0)
    contrast: Range = (1.0, 1.0)
    saturation: Range = (1.0, 1.0)
    hue: Range = (0.0, 0.0)
    """Turn of the colour circle, as a share of it."""
    grey: float = 0.0
    """Probability that colours are taken away."""


POLICIES: dict[str, Policy | None] = {
    NONE: None,
    "flip_crop": Policy(area=(0.5, 1.0), aspect=(3 / 4, 4 / 3), mirrored=0.5),
    "strong": Policy(
        area=(0.2, 1.0),
        aspect=(3 / 4, 4 / 3),
        mirrored=0.5,
        brightness=(0.6, 1.4),
        contrast=(0.6, 1.4),
        saturation=(0.6, 1.4),
        hue=(-0.05, 0.05),
        grey=0.1,
    ),
}


@dataclass(frozen=True)
class View:
    """One view of an image."""

    box: tuple[float, float, float, float]
    """Left, top, right, bottom of the crop, in pixels of the decoded image."""
    mirrored: bool
    brightness: float
    contrast: float
    saturation: float
    hue: float
    grey: bool


@dataclass(frozen=True)
class Augmentation:
    """`views` views of every image under a named policy and a seed."""

    policy: str = NONE
    views: int = 1
    seed: int = 0

    @property
    def digest(self) -> str:
        """SHA-256 hex of all that decides the views of an image, the policy's numbers included."""
        policy = POLICIES[self.policy]
        numbers = None if policy is None else dataclasses.asdict(policy)
        text = json.dumps([_VERSION, self.policy, numbers, self.views, self.seed], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def view(self, digest: str, view: int, size: tuple[int, int]) -> View | None:
        """View number `view` of the image with this digest and (width, height) in pixels.

        None stands for the image as it is. Raises InvalidInput for a view out of range.
        """
        if not 0 <= view < self.views:
            raise InvalidInput(f"view {view} of {self.views}", field="views")
        policy = POLICIES[self.policy]
        return None if policy is None else _draw(policy, _source(digest, view, self.seed), size)


def read_augmentation(
    message: items_pb2.Augmentation, *, field: str = "augmentation"
) -> Augmentation:
    """The augmentation of a request. Raises InvalidInput that names what is out of range."""
    if message.policy not in POLICIES:
        raise InvalidInput(
            f"{field}.policy: {message.policy[:40]!r} is none of {', '.join(POLICIES)}",
            field=f"{field}.policy",
        )
    views = message.views or 1
    most = 1 if message.policy == NONE else MAX_VIEWS
    if not 1 <= views <= most:
        raise InvalidInput(
            f"{field}.views: must be from 1 to {most} for policy {message.policy}",
            field=f"{field}.views",
        )
    return Augmentation(message.policy, views, message.seed)


def _source(digest: str, view: int, seed: int) -> random.Random:
    # Python promises that random() gives the same numbers in every version; of the other methods,
    # and of numpy's and torch's generators, nobody does.
    text = json.dumps([digest, view, seed])
    return random.Random(int.from_bytes(hashlib.sha256(text.encode()).digest(), "big"))


def _draw(policy: Policy, source: random.Random, size: tuple[int, int]) -> View:
    width, height = size
    area = _between(policy.area, source) * width * height
    low, high = policy.aspect
    aspect = math.exp(_between((math.log(low), math.log(high)), source))
    wide, high_px = min(math.sqrt(area * aspect), width), min(math.sqrt(area / aspect), height)
    left, top = source.random() * (width - wide), source.random() * (height - high_px)
    return View(
        box=(left, top, min(left + wide, width), min(top + high_px, height)),
        mirrored=source.random() < policy.mirrored,
        brightness=_between(policy.brightness, source),
        contrast=_between(policy.contrast, source),
        saturation=_between(policy.saturation, source),
        hue=_between(policy.hue, source),
        grey=source.random() < policy.grey,
    )


def _between(limits: Range, source: random.Random) -> float:
    low, high = limits
    return low + source.random() * (high - low)
