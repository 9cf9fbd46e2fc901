"""A linear classifier head as a file: safetensors with weight, bias, and the class names in its
metadata.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from services.common.errors import InvalidInput

_CLASSES = "classes"
MAX_CLASSES = 100_000


@dataclasses.dataclass(frozen=True)
class LinearHead:
    """logits = features @ weight.T + bias. Raises InvalidInput when shapes, names or values are
    wrong.
    """

    weight: Tensor
    """fp32 [K, D]."""
    bias: Tensor
    """fp32 [K]."""
    classes: tuple[str, ...]
    """K unique names."""

    def __post_init__(self) -> None:
        count = len(self.classes)
        if not 1 <= count <= MAX_CLASSES or len(set(self.classes)) != count:
            raise InvalidInput("a head needs unique class names", field="classes")
        if self.weight.ndim != 2 or self.weight.shape[0] != count or self.bias.shape != (count,):
            shapes = f"weight {tuple(self.weight.shape)}, bias {tuple(self.bias.shape)}"
            raise InvalidInput(f"a head of {count} classes cannot have {shapes}", field="head")
        for name, tensor in (("weight", self.weight), ("bias", self.bias)):
            if tensor.dtype != torch.float32 or not bool(torch.isfinite(tensor).all()):
                raise InvalidInput(f"the head's {name} must be finite fp32", field="head")

    @property
    def feature_dim(self) -> int:
        """D, the length of the features it reads."""
        return int(self.weight.shape[1])

    def __call__(self, features: Tensor) -> Tensor:
        """Logits fp32 [B, K] of features fp32 [B, D]."""
        return torch.nn.functional.linear(features, self.weight, self.bias)


def save_head(head: LinearHead, path: Path) -> None:
    """Write a head; the file appears whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    tensors = {"weight": head.weight.contiguous(), "bias": head.bias.contiguous()}
    try:
        save_file(tensors, partial, metadata={_CLASSES: json.dumps(head.classes)})
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load_head(path: Path) -> LinearHead:
    """Read a head. Raises InvalidInput when the file is not one."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        classes = json.loads(metadata.get(_CLASSES, "null"))
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise InvalidInput(f"{path.name} is not a linear head: {error}", field="head") from error
    named = isinstance(classes, list) and all(isinstance(x, str) for x in classes)
    if set(tensors) != {"weight", "bias"} or not named:
        raise InvalidInput(
            f"{path.name} is not a linear head: it needs tensors weight and bias, "
            "and classes in its metadata",
            field="head",
        )
    return LinearHead(tensors["weight"], tensors["bias"], tuple(classes))
