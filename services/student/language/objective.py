"""From a model and a batch to the loss: logits only where a token is a target."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from services.student.language.data import Batch
from services.student.language.options import LossOptions
from services.student.language.sparse_losses import (
    SparseTargets,
    bucket_divergence,
    label_targets,
    sampled_cross_entropy,
    sparse_uld,
)

PASS_TOKENS = 128
"""What a forward and backward pass costs besides its tokens, as a number of tokens."""


def target_logits(model: Any, batch: Batch, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Logits [N, V] of the batch's target tokens, from a causal language model of transformers.

    Hidden states of other tokens never reach the output layer, the dearest of a small model. The
    forward pass runs in `dtype`; weights keep their own. Rows of rising length that differ much run
    in several passes, so that short ones are not padded to the longest.
    """
    lengths = batch.attention_mask.sum(dim=1).cpu().numpy()
    with torch.autocast(batch.input_ids.device.type, dtype, enabled=dtype != torch.float32):
        parts = [_logits_of(model, batch, rows, longest) for rows, longest in passes(lengths)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def passes(lengths: npt.NDArray[np.int64]) -> list[tuple[slice, int]]:
    """Rows of the forward passes that a batch of such lengths takes, and the longest of each.

    A pass is cut where that saves more padding than `PASS_TOKENS`; lengths that do not rise stay
    together.
    """
    if len(lengths) > 1 and bool((np.diff(lengths) >= 0).all()):
        counts = np.arange(1, len(lengths))
        saved = counts * (lengths[-1] - lengths[:-1])
        if saved.max() > PASS_TOKENS:
            cut = int(counts[saved.argmax()])
            later = passes(lengths[cut:])
            return passes(lengths[:cut]) + [
                (slice(rows.start + cut, rows.stop + cut), longest) for rows, longest in later
            ]
    return [(slice(0, len(lengths)), int(lengths.max()))]


def _logits_of(model: Any, batch: Batch, rows: slice, longest: int) -> Tensor:
    with _only(model.get_output_embeddings(), batch.predicts[rows, :longest]):
        output = model(
            input_ids=batch.input_ids[rows, :longest],
            attention_mask=batch.attention_mask[rows, :longest],
            use_cache=False,
        )
    return output.logits  # type: ignore[no-any-return]


def distillation_loss(logits: Tensor, batch: Batch, options: LossOptions, kind: str) -> Tensor:
    """The loss of logits [N, V], a mean over the N target tokens: distilled ones by `options` on
    targets of a kind (`sampled` or `top_k`), others by cross-entropy to the text.
    """
    if batch.targets is None or options.divergence is None:
        return _cross_entropy(logits, batch.labels)
    if bool(batch.is_distilled.all()):
        return _distilled(logits, batch.labels, batch.targets, options, kind)
    taught, plain = batch.is_distilled, ~batch.is_distilled
    share = taught.sum() / len(taught)
    distilled = _distilled(logits[taught], batch.labels[taught], batch.targets, options, kind)
    return share * distilled + (1 - share) * _cross_entropy(logits[plain], batch.labels[plain])


def _distilled(
    logits: Tensor, labels: Tensor, targets: SparseTargets, options: LossOptions, kind: str
) -> Tensor:
    assert options.divergence is not None
    if kind == "sampled":
        loss = sampled_cross_entropy(logits, targets, temperature=options.temperature)
    elif options.divergence == "uld":
        loss = sparse_uld(logits, targets, temperature=options.temperature)
    else:
        loss = bucket_divergence(
            options.divergence,
            logits,
            targets,
            temperature=options.temperature,
            beta=options.beta,
            skew=options.skew,
        )
    weight = options.cross_entropy_weight
    if not weight:
        return loss
    return (1 - weight) * loss + weight * _cross_entropy(logits, labels)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return sampled_cross_entropy(logits, label_targets(labels))


@contextmanager
def _only(layer: nn.Module, wanted: Tensor) -> Iterator[None]:
    """Let the output layer see the hidden states [B, T, H] where `wanted` [B, T], as [N, H]."""
    handle = layer.register_forward_pre_hook(lambda _, given: (given[0][wanted],))
    try:
        yield
    finally:
        handle.remove()
