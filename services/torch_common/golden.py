"""A fixed input and the few logits that prove converted weights compute what they should."""

from __future__ import annotations

import torch
from torch import Tensor, nn

COUNT = 8
_ATOL = 2e-3
_RTOL = 2e-3


class GoldenMismatch(ValueError):
    """The model's logits for the golden input are not the recorded ones."""


def golden_input(size_px: int) -> Tensor:
    """One normalised image, fp32 [1, 3, size, size], values in -1..1: three crossed waves, no
    random numbers.
    """
    axis = torch.arange(size_px, dtype=torch.float64) / size_px
    y, x = axis[:, None], axis[None, :]
    waves = [torch.sin(2 * torch.pi * (k * x + (5 - k) * y * y)) for k in (1, 2, 3)]
    return torch.stack(waves).unsqueeze(0).to(torch.float32)


@torch.inference_mode()
def golden_logits(model: nn.Module, size_px: int) -> tuple[float, ...]:
    """The first ``COUNT`` logits for the golden input, rounded to five decimals."""
    logits = model.eval()(golden_input(size_px))[0, :COUNT]
    return tuple(round(float(x), 5) for x in logits)


def check_golden(model: nn.Module, size_px: int, expected: tuple[float, ...]) -> tuple[float, ...]:
    """Compare with recorded logits; returns the measured ones. Raises GoldenMismatch."""
    got = golden_logits(model, size_px)
    if len(expected) != len(got):
        raise GoldenMismatch(
            f"{len(expected)} golden logits are recorded, the model gives {len(got)}"
        )
    near = torch.allclose(torch.tensor(got), torch.tensor(expected), rtol=_RTOL, atol=_ATOL)
    if not near:
        raise GoldenMismatch(f"golden logits are {list(got)}, expected {list(expected)}")
    return got
