"""What a training is given, and what it has counted so far."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from services.student.language.data import TargetBank
from services.student.language.plan import Ints
from services.student.language.states import StateGuide
from services.student.training_loop import Progress as Counted
from services.torch_common.language.packing import PackedSequence


class Teach(Protocol):
    """Who teaches steps that need the model itself."""

    def sequences(
        self, model: Any, sequences: list[PackedSequence], step: int
    ) -> list[PackedSequence]:
        """What a step trains on, by rising length; the same on all ranks."""

    def targets(self, sequences: Sequence[PackedSequence]) -> TargetBank | None:
        """The teacher's targets for some of them."""


@dataclass(frozen=True)
class Course:
    """What is trained on, in which order, and how it is measured meanwhile."""

    sequences: Sequence[PackedSequence]
    """Those of the data, then those of the replay."""
    bank: TargetBank | None
    steps: Ints
    """[steps, batch] indices of `sequences`."""
    heldout: Callable[[Any], float] | None = None
    """The model's cross-entropy per held-out token, in nats."""
    teach: Teach | None = None
    kind: str = "sampled"
    """Kind of the targets."""
    guide: StateGuide | None = None
    """The model as it was, where states are compared with it."""


@dataclass
class Progress(Counted):
    """What the training of a language model has counted so far."""

    tokens: int = 0
    """Target tokens trained on."""
    best: float = math.inf
    """Lowest held-out cross-entropy."""


class Since:
    """Loss, tokens and time since the last point of the curves."""

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._tokens = 0
        self._start_s = time.monotonic()

    def add(self, loss: Tensor, tokens: int) -> None:
        """Note a step."""
        self._losses.append(loss.detach())
        self._tokens += tokens

    def take(self) -> tuple[float, int, float]:
        """Mean loss, target tokens and seconds; starts anew."""
        loss = float(torch.stack(self._losses).mean()) if self._losses else math.nan
        now_s = time.monotonic()
        found = (loss, self._tokens, now_s - self._start_s)
        self._losses, self._tokens, self._start_s = [], 0, now_s
        return found

    def restart(self) -> None:
        """Leave out the time since the last point."""
        self._start_s = time.monotonic()
