"""From tokens to hidden states to logits, at the rows that are asked for and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from services.common.errors import Precondition
from services.common.tensors import Array

ROWS = 128
"""Rows whose logits are in memory at once."""


def hidden_states(
    model: Any, sequences: Sequence[Array], *, side: Literal["left", "right"] = "right"
) -> Tensor:
    """Last hidden states [n, longest, d] of token ids int32 [t] each, padded on one side.

    Padding on the right needs no mask: no token of a causal model sees what comes after it.
    """
    longest = max(len(one) for one in sequences)
    ids = np.zeros((len(sequences), longest), np.int64)
    mask = np.zeros((len(sequences), longest), np.int64)
    for row, one in enumerate(sequences):
        place = slice(0, len(one)) if side == "right" else slice(longest - len(one), None)
        ids[row, place] = one
        mask[row, place] = 1
    more = {}
    if side == "left":
        attention = torch.from_numpy(mask).to(model.device)
        more = {
            "attention_mask": attention,
            "position_ids": (attention.cumsum(-1) - 1).clamp_min(0),
        }
    trunk = getattr(model, model.base_model_prefix)
    given = torch.from_numpy(ids).to(model.device)
    return trunk(input_ids=given, use_cache=False, **more).last_hidden_state  # type: ignore[no-any-return]


class Head:
    """The output layer: hidden states to logits of the vocabulary, its padding left out."""

    def __init__(self, model: Any, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        layer = model.get_output_embeddings()
        self._weight, self._bias = layer.weight[:vocab_size], layer.bias
        self._cap = getattr(model.config, "final_logit_softcapping", None)

    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits float32 [rows, vocabulary] of hidden states [rows, d]."""
        bias = None if self._bias is None else self._bias[: self.vocab_size]
        logits = functional.linear(hidden, self._weight, bias).float()
        return torch.tanh(logits / self._cap) * self._cap if self._cap else logits

    @torch.inference_mode()
    def check(self, model: Any) -> None:
        """Raise Precondition where the model makes its logits in a way that is not known here."""
        ids = np.arange(4) % self.vocab_size
        own = self(hidden_states(model, [ids])[0])
        theirs = model(input_ids=torch.from_numpy(ids)[None].to(model.device)).logits[0]
        theirs = theirs[:, : self.vocab_size].float()
        if not torch.allclose(own, theirs, rtol=2e-2, atol=2e-2):
            raise Precondition(f"{type(model).__name__} scales its logits in an unknown way")
