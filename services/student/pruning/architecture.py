"""Which models can be pruned: transformers' Llama family, with nothing but its plain weights."""

from __future__ import annotations

from typing import Any

from services.common.errors import InvalidInput, Precondition
from services.student.pruning.shape import Shape

FAMILIES = ("llama", "mistral")
"""transformers' model types whose weights are those that a Shape counts."""


def shape_of(model: Any) -> Shape:
    """The shape of a causal language model of transformers.

    Raises Precondition where it is of another family, has sizes that do not fit each other, or
    tensors that would be left uncut: biases, adapters, quantised weights.
    """
    config = model.config
    kind = str(getattr(config, "model_type", "unknown"))
    if kind not in FAMILIES:
        raise Precondition(
            f"models of type {kind} cannot be pruned; {' and '.join(FAMILIES)} can",
            differences={"model_type": f"{kind} is none of {', '.join(FAMILIES)}"},
        )
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    try:
        shape = _sizes(config, tied)
    except InvalidInput as error:
        raise Precondition(
            f"the model's own sizes do not fit each other, so it cannot be pruned: {error.message}",
            differences=dict(error.violations),
        ) from None
    _check_plain(model, shape)
    return shape


def _sizes(config: Any, tied: bool) -> Shape:
    """The shape that a configuration describes. Raises InvalidInput where it is none."""
    return Shape(
        layers=int(config.num_hidden_layers),
        hidden_size=int(config.hidden_size),
        intermediate_size=int(config.intermediate_size),
        attention_heads=int(config.num_attention_heads),
        key_value_heads=int(config.num_key_value_heads),
        head_dim=int(config.head_dim or config.hidden_size // config.num_attention_heads),
        vocab_size=int(config.vocab_size),
        tied=tied,
    )


def _check_plain(model: Any, shape: Shape) -> None:
    weights = list(model.parameters())
    count = sum(weight.numel() for weight in weights)
    if count != shape.parameters or not all(weight.is_floating_point() for weight in weights):
        raise Precondition(
            f"the model has {count:,} parameters where its sizes make {shape.parameters:,}; it can "
            "be pruned without biases, with adapters merged, in float32, bfloat16 or float16",
            differences={"parameters": f"{count} != {shape.parameters}"},
        )
