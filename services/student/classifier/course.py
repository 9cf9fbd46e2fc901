"""What a training is given, and what it has counted so far."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from services.student.classifier.data import Batch
from services.student.classifier.losses import Losses
from services.student.training_loop import Point
from services.student.training_loop import Progress as Counted

Network = Callable[[Tensor], Tensor]
"""Images as a network takes them to logits [B, K]."""


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
    heldout: Callable[[Network], HeldOut] | None = None
    """Measures a student, which is in eval mode."""


@dataclass
class Progress(Counted):
    """What the training of a classifier has counted so far."""

    images: int = 0
    best_accuracy: float = -1.0
    best_cross_entropy: float = math.inf

    def note(self, found: HeldOut) -> bool:
        """Take note of an evaluation; returns whether it was the best. Of equal accuracies the
        lower cross-entropy counts."""
        before = self.best_accuracy, -self.best_cross_entropy
        better = (found.accuracy, -found.cross_entropy) > before
        if better:
            self.best_accuracy, self.best_cross_entropy = found.accuracy, found.cross_entropy
        return better


class Since:
    """Losses, images and time since the last point of the curves."""

    def __init__(self) -> None:
        self._losses: dict[str, list[Tensor]] = {}
        self._images = 0
        self._start_s = time.monotonic()

    def add(self, losses: Losses, images: int, *, part: float = 1.0) -> None:
        """Note a step, whose losses count for a part of the step's."""
        parts = {"loss": losses.total, "hard_loss": losses.hard}
        parts |= {} if losses.soft is None else {"soft_loss": losses.soft}
        parts |= {} if losses.feature is None else {"feature_loss": losses.feature}
        for name, value in parts.items():
            self._losses.setdefault(name, []).append(part * value.detach())
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
