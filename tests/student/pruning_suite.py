"""Tiny random Llamas whose norms and activations are uneven, and calibration batches for them."""

from __future__ import annotations

import numpy as np
import torch

import services.torch_common  # noqa: F401  declares what transformers' import needs
from services.student.language.data import collate
from services.torch_common.language.packing import PackedSequence

VOCAB = 40


def make_model(
    *, tied: bool = True, layers: int = 3, seed: int = 0, heads: int = 4, groups: int = 2
):
    """A random Llama, hidden 32, with gammas from 0.2 to 2 and a large eps, so that both count."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=8,
        max_position_embeddings=64,
        rms_norm_eps=1e-2,
        initializer_range=0.2,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight.uniform_(0.2, 2.0)
    return model


def make_sequences(count: int = 6, *, seed: int = 1):
    """Sequences of several lengths; every token but the first is a target."""
    rng = np.random.default_rng(seed)
    found = []
    for at in range(count):
        tokens = rng.integers(1, VOCAB, 5 + 3 * (at % 4)).astype(np.int32)
        is_target = np.ones(len(tokens), np.uint8)
        is_target[0] = 0
        found.append(PackedSequence(tokens, is_target))
    return found


def make_batches(count: int = 6, size: int = 3):
    """Padded batches of `make_sequences`."""
    some = make_sequences(count)
    return [collate(some[at : at + size]) for at in range(0, count, size)]
