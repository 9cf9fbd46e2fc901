"""What a training is given, and what it has counted so far."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from services.student.language.data import Batch, TargetBank
from services.student.language.plan import Ints
from services.student.language.states import StateGuide
from services.torch_common.language.packing import PackedSequence

Point = dict[str, float]
Teach = Callable[[Any, list[PackedSequence], int], Batch]
"""(model, sequences, step) to a batch with targets, for steps that need the model itself."""


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
class Progress:
    """What a training has counted so far; all of it is in a checkpoint."""

    step: int = 0
    tokens: int = 0
    """Target tokens trained on."""
    seconds: float = 0.0
    curves: list[Point] = field(default_factory=list)
    best: float = math.inf
    """Lowest held-out cross-entropy."""
    best_step: int = 0
    without_gain: int = 0
    """Evaluations since."""
    stopped_early: bool = False


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
