"""How long a forward pass of a shape takes here, timed on random weights of that shape.

A pass goes over one sequence, and its logits are made for every token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from services.common.tensors import Array
from services.student.artefacts import Card
from services.student.pruning.architecture import shape_of
from services.student.pruning.cut import with_random_weights
from services.student.pruning.shape import CUT_SIZES, Shape
from services.student.timing import median_ms
from services.torch_common.language.precision import device_name

TOKENS = 128
WARMUP, TIMED = 2, 7
"""Passes over each shape: those before the clock, and those whose median counts."""


class Stopwatch:
    """Times shapes that are cut out of `model`, on its device, in `dtype`; keeps what it measured.

    `told(done)` hears of each shape.
    """

    def __init__(
        self, model: Any, dtype: torch.dtype, *, told: Callable[[int], object] = lambda _: None
    ) -> None:
        self._model, self._dtype, self._told = model, dtype, told
        self.base = shape_of(model)
        self.tokens = min(TOKENS, int(model.config.max_position_embeddings))
        self.times_ms: dict[Shape, float] = {}

    def __call__(self, shape: Shape) -> float:
        """Median milliseconds of a shape; measured once."""
        if shape not in self.times_ms:
            self.times_ms[shape] = self._measured(shape)
            self._told(len(self.times_ms))
        return self.times_ms[shape]

    @torch.inference_mode()
    def _measured(self, shape: Shape) -> float:
        made = with_random_weights(self._model, shape, seed=0).to(self._dtype).eval()
        ids = torch.arange(self.tokens, device=made.device)[None] % shape.vocab_size

        def go() -> None:
            made(ids, use_cache=False).logits[0, -1, 0].item()  # which waits for the device

        return median_ms(go, warmup=WARMUP, timed=TIMED)

    def to_arrays(self) -> dict[str, Array]:
        """What was measured: `sizes` int64 [n, 4], in the order of CUT_SIZES, and `ms` [n]."""
        sizes = [[getattr(shape, name) for name in CUT_SIZES] for shape in self.times_ms]
        return {"sizes": np.array(sizes, np.int64), "ms": np.array([*self.times_ms.values()])}

    def recall(self, arrays: dict[str, Array]) -> None:
        """Take over what another one measured; nothing where there are no arrays."""
        if not arrays:
            return
        for sizes, ms in zip(arrays["sizes"].tolist(), arrays["ms"].tolist(), strict=True):
            self.times_ms[self.base.resized(**dict(zip(CUT_SIZES, sizes, strict=True)))] = ms

    def notes(self) -> Card:
        """What was measured on, for the report."""
        device = str(self._model.device)
        return {
            "tokens": self.tokens,
            "batch": 1,
            "passes": TIMED,
            "precision": str(self._dtype).removeprefix("torch."),
            "device": device,
            "device_name": device_name(device),
            "threads": torch.get_num_threads(),
            "whole_model_ms": self(self.base),
            "shapes_measured": len(self.times_ms),
        }
