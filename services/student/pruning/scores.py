"""The importance of a model's parts as tensors, in memory and as safetensors."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from services.common.errors import InvalidInput, Precondition
from services.common.tensors import Array, expect, pack_arrays, unpack_arrays
from services.student.pruning.shape import Shape

_SCORES = ("neurons", "heads", "channels", "layers")
_FIELD = "importance"


@dataclass(frozen=True)
class Importance:
    """Scores of all parts of a model of L layers, float32 on the CPU; more matters more."""

    neurons: Tensor
    """[L, intermediate_size]."""
    heads: Tensor
    """[L, attention_heads]; comparable within a layer's key/value group."""
    channels: Tensor
    """[hidden_size], summed over all norms: the residual stream has one set of channels."""
    layers: Tensor
    """[L]: 1 - mean cosine of a layer's input and output."""
    sequences: int = 0
    tokens: int = 0
    perplexities: Tensor | None = None
    """[1 + L]: the whole model's on the calibration text, then without each layer."""
    model_digest: str = ""
    """Digest of the model measured; empty where it is not known."""

    @property
    def layer_order(self) -> list[int]:
        """Layers, the most important first: by perplexity where it was measured."""
        scores = self.layers if self.perplexities is None else self.perplexities[1:]
        return [int(at) for at in scores.argsort(descending=True, stable=True)]

    @property
    def is_finite(self) -> bool:
        """Whether all scores are numbers."""
        return all(bool(getattr(self, name).isfinite().all()) for name in _SCORES)

    def check_of(self, base: Shape, model_digest: str = "") -> None:
        """Raise Precondition where the scores are of another model than that of `base`."""
        sizes = {
            "layers": (len(self.layers), base.layers),
            "hidden_size": (len(self.channels), base.hidden_size),
            "intermediate_size": (self.neurons.shape[1], base.intermediate_size),
            "attention_heads": (self.heads.shape[1], base.attention_heads),
        }
        differences = {
            name: f"{here} measured, the model has {there}"
            for name, (here, there) in sizes.items()
            if here != there
        }
        if model_digest and self.model_digest not in ("", model_digest):
            differences["model"] = f"{self.model_digest} measured, {model_digest} is here"
        if differences:
            raise Precondition(
                f"the importance is of another model ({', '.join(differences)}); measure it again",
                differences=differences,
            )

    def to_arrays(self) -> dict[str, Array]:
        """The scores by name, float32; `counts` int64 [2]; `model` uint8 [32]."""
        arrays: dict[str, Array] = {name: getattr(self, name).numpy() for name in _SCORES}
        arrays["counts"] = np.array([self.sequences, self.tokens], np.int64)
        if self.perplexities is not None:
            arrays["perplexities"] = self.perplexities.numpy()
        if self.model_digest:
            arrays["model"] = np.frombuffer(bytes.fromhex(self.model_digest), np.uint8)
        return arrays

    def to_bytes(self) -> bytes:
        """safetensors; equal scores give equal bytes."""
        return pack_arrays(self.to_arrays())

    @classmethod
    def from_arrays(cls, arrays: dict[str, Array]) -> Importance:
        """The inverse of `to_arrays`. Raises InvalidInput where the arrays do not fit together."""
        missing = {*_SCORES, "counts"} - set(arrays)
        if missing:
            raise InvalidInput(f"{_FIELD}: lacks {', '.join(sorted(missing))}", field=_FIELD)
        count = len(arrays["layers"]) if arrays["layers"].ndim else 0
        for name in ("neurons", "heads"):
            expect(arrays[name], shape=(count, None), field=f"{_FIELD}.{name}")
        for name in ("channels", "layers"):
            expect(arrays[name], shape=(None,), field=f"{_FIELD}.{name}")
        sequences, tokens = expect(arrays["counts"], shape=(2,), field=f"{_FIELD}.counts")
        found = cls(
            neurons=_tensor(arrays["neurons"]),
            heads=_tensor(arrays["heads"]),
            channels=_tensor(arrays["channels"]),
            layers=_tensor(arrays["layers"]),
            sequences=int(sequences),
            tokens=int(tokens),
        )
        if not found.is_finite:
            raise InvalidInput(f"{_FIELD}: holds NaN or infinity", field=_FIELD)
        if "perplexities" in arrays:
            wanted = expect(arrays["perplexities"], shape=(count + 1,), field=_FIELD)
            found = replace(found, perplexities=_tensor(wanted))
        if "model" in arrays:
            digest = expect(arrays["model"], shape=(32,), field=f"{_FIELD}.model")
            found = replace(found, model_digest=digest.astype(np.uint8).tobytes().hex())
        return found

    @classmethod
    def from_bytes(cls, data: bytes) -> Importance:
        """The inverse of `to_bytes`. Raises InvalidInput."""
        return cls.from_arrays(unpack_arrays(data, what=_FIELD))


def _tensor(array: Array) -> Tensor:
    return torch.from_numpy(np.array(array, np.float32))
