"""A smaller model of transformers out of a larger one's weights.

RMSNorm divides by the root of the mean over all channels. With d' of d channels left, gamma' =
gamma sqrt(d / d') and eps' = eps d / d' make it compute what the whole norm computes where the
other channels are zero, so that nothing but the loss of these channels changes.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor

from services.student.pruning.architecture import shape_of
from services.student.pruning.choice import Kept
from services.student.pruning.shape import Shape


def cut(model: Any, shape: Shape, kept: Kept) -> Any:
    """A new model of the same class that has only the parts kept, its weights copied.

    It saves, loads and generates as any model of its class. Raises Precondition for another
    architecture, InvalidInput where `shape` does not fit into the model.
    """
    base = shape_of(model)
    shape.check_within(base)
    config = _config(model.config, base, shape, kept.layers)
    config.rms_norm_eps = model.config.rms_norm_eps * base.hidden_size / shape.hidden_size
    made = _built(model, config, seed=0)
    made.load_state_dict(_state(model, base, kept), strict=True)
    return made


def with_random_weights(model: Any, shape: Shape, seed: int) -> Any:
    """A new model of `shape` as its class initialises it, by seed: what training from nothing gives
    is the control that says what the larger model's weights are worth. Raises as `cut`."""
    base = shape_of(model)
    shape.check_within(base)
    layers = shape.kept_layers or tuple(range(shape.layers))
    return _built(model, _config(model.config, base, shape, layers), seed=seed)


def _config(config: Any, base: Shape, shape: Shape, layers: tuple[int, ...]) -> Any:
    made = copy.deepcopy(config)
    made.num_hidden_layers = shape.layers
    made.hidden_size = shape.hidden_size
    made.intermediate_size = shape.intermediate_size
    made.num_attention_heads = shape.attention_heads
    made.num_key_value_heads = shape.key_value_heads
    made.head_dim = base.head_dim  # hidden_size / heads is another number now
    if getattr(config, "layer_types", None):
        made.layer_types = [config.layer_types[at] for at in layers]
    return made


def _built(model: Any, config: Any, *, seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):  # models are made on the CPU, whatever they run on
        torch.default_generator.manual_seed(seed)
        made = type(model)(config)
    made.generation_config = copy.deepcopy(model.generation_config)
    return made.to(device=model.device, dtype=model.dtype).train(model.training)


def _state(model: Any, base: Shape, kept: Kept) -> dict[str, Tensor]:
    """The weights of the smaller model by name."""
    channels = kept.channels.to(model.device)
    scale = math.sqrt(base.hidden_size / len(channels))
    weights = model.state_dict()
    state = {
        "model.embed_tokens.weight": weights["model.embed_tokens.weight"][:, channels],
        "model.norm.weight": _gamma(weights["model.norm.weight"], channels, scale),
        "lm_head.weight": weights["lm_head.weight"][:, channels],
    }
    for new, old in enumerate(kept.layers):
        part = _layer(weights, f"model.layers.{old}.", base, kept, new)
        state |= {f"model.layers.{new}.{name}": weight for name, weight in part.items()}
    return state


def _layer(
    weights: dict[str, Tensor], prefix: str, base: Shape, kept: Kept, row: int
) -> dict[str, Tensor]:
    """The weights of one layer, cut; `row` is its place in `kept`."""
    device = weights[f"{prefix}input_layernorm.weight"].device
    channels, neurons = kept.channels.to(device), kept.neurons[row].to(device)
    scale = math.sqrt(base.hidden_size / len(channels))
    queries = _rows(kept.heads[row], base.head_dim).to(device)
    found = {}
    for name in ("input_layernorm", "post_attention_layernorm"):
        found[f"{name}.weight"] = _gamma(weights[f"{prefix}{name}.weight"], channels, scale)
    for name, outputs in (
        ("self_attn.q_proj", queries),
        ("self_attn.k_proj", None),
        ("self_attn.v_proj", None),
        ("mlp.gate_proj", neurons),
        ("mlp.up_proj", neurons),
    ):
        weight = weights[f"{prefix}{name}.weight"][:, channels]
        found[f"{name}.weight"] = weight if outputs is None else weight[outputs]
    for name, inputs in (("self_attn.o_proj", queries), ("mlp.down_proj", neurons)):
        found[f"{name}.weight"] = weights[f"{prefix}{name}.weight"][channels][:, inputs]
    return found


def _gamma(weight: Tensor, channels: Tensor, scale: float) -> Tensor:
    """A norm's weight on fewer channels, scaled in float32 and rounded once."""
    return (weight[channels].float() * scale).to(weight.dtype)


def _rows(heads: Tensor, head_dim: int) -> Tensor:
    """Rows of the query projection that belong to heads."""
    return (heads[:, None] * head_dim + torch.arange(head_dim)).flatten()
