"""What a model loses with each of its layers: perplexity on the calibration text without it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from services.common.errors import Precondition
from services.student.language.data import Batch
from services.student.language.objective import target_logits
from services.student.pruning.architecture import shape_of
from services.student.pruning.importance import Told, check_calibration, evaluating


@torch.no_grad()
def layer_perplexities(model: Any, batches: Sequence[Batch], *, told: Told | None = None) -> Tensor:
    """Perplexities float32 [1 + L]: of the model as it is, then without each layer in turn.

    Takes 1 + L forward passes over the batches; `told(done, total)` hears of each. Raises
    InvalidInput for too small a calibration set, Precondition for another architecture.
    """
    count = 1 + shape_of(model).layers
    check_calibration(batches)
    found = []
    with evaluating(model):
        for at in range(count):
            with skipped(model, [at - 1] if at else []):
                found.append(perplexity(model, batches))
            if told:
                told(at + 1, count)
    return torch.tensor(found, dtype=torch.float32)


@torch.no_grad()
def perplexity(model: Any, batches: Sequence[Batch]) -> float:
    """exp of the mean -log q over all target tokens of the batches. Raises Precondition where the
    model's logits are no numbers."""
    total, tokens = 0.0, 0
    for batch in batches:
        here = batch.to(model.device)
        logits = target_logits(model, here).float()
        total += float(cross_entropy(logits, here.labels, reduction="sum").double())
        tokens += here.token_count
    if not math.isfinite(total):
        raise Precondition("the model's logits are not finite; its weights are damaged")
    return math.exp(min(total / max(tokens, 1), 80.0))  # float32 holds no more than e^88


@contextmanager
def skipped(model: Any, layers: Sequence[int]) -> Iterator[None]:
    """The model with these layers handing on what they get. Without a key/value cache only: the
    layers still run."""
    handles = [model.model.layers[at].register_forward_hook(_input) for at in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _input(_: nn.Module, given: tuple[Any, ...], __: Any) -> Any:
    return given[0]
