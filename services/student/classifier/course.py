"""What a training is given, and what it has counted so far."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from services.student.classifier.data import Batch
from services.student.classifier.losses import Losses

Point = dict[str, float]


@dataclass(frozen=True)
class HeldOut:
    """What a network is worth on items it was not trained on."""

    accuracy: float
    cross_entropy: float
    """To the labels, in nats."""


@dataclass(frozen=True)
class Course:
    """What is trained on, in which order, and how it is measured meanwhile."""

    steps: int
    batch: Callable[[int], Batch]
    """The batch of a step; called in threads."""
    images: Callable[[Batch], Tensor]
    """A batch's pixels as the network takes them, on its device."""
    heldout: Callable[[nn.Module], HeldOut] | None = None
    """Measures the student, which is in eval mode."""


@dataclass
class Progress:
    """What a training has counted so far; all of it is in a checkpoint."""

    step: int = 0
    images: int = 0
    seconds: float = 0.0
    curves: list[Point] = field(default_factory=list)
    best_accuracy: float = -1.0
    best_cross_entropy: float = math.inf
    best_step: int = 0
    without_gain: int = 0
    """Evaluations since."""
    stopped_early: bool = False

    def note(self, found: HeldOut, patience: int) -> bool:
        """Count an evaluation; returns whether it was the best. Of equal accuracies the lower
        cross-entropy counts."""
        better = (found.accuracy, -found.cross_entropy) > (
            self.best_accuracy,
            -self.best_cross_entropy,
        )
        if better:
            self.best_accuracy, self.best_cross_entropy = found.accuracy, found.cross_entropy
            self.best_step, self.without_gain = self.step, 0
        else:
            self.without_gain += 1
            self.stopped_early = 0 < patience <= self.without_gain
        return better


class Since:
    """Losses, images and time since the last point of the curves."""

    def __init__(self) -> None:
        self._losses: dict[str, list[Tensor]] = {}
        self._images = 0
        self._start_s = time.monotonic()

    def add(self, losses: Losses, images: int) -> None:
        """Note a step."""
        parts = {"loss": losses.total, "hard_loss": losses.hard}
        parts |= {} if losses.soft is None else {"soft_loss": losses.soft}
        parts |= {} if losses.feature is None else {"feature_loss": losses.feature}
        for name, value in parts.items():
            self._losses.setdefault(name, []).append(value.detach())
        self._images += images

    def take(self) -> tuple[Point, int, float]:
        """Mean losses by name, images and seconds; starts anew."""
        means = {name: float(torch.stack(some).mean()) for name, some in self._losses.items()}
        now_s = time.monotonic()
        found = (means, self._images, now_s - self._start_s)
        self._losses, self._images, self._start_s = {}, 0, now_s
        return found

    def restart(self) -> None:
        """Leave out the time since the last point."""
        self._start_s = time.monotonic()
