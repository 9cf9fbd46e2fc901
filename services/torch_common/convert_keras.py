"""Read a Keras ResNet-50 from its TensorFlow.js folder as a state dict of timm's ``resnet50``.

The model's input convention (BGR, 0..255 minus channel means, batch norm with eps 1e-3,
convolutions with a bias) is folded into the tensors, so that what comes out is a plain RGB network
with torch's defaults: only the ``v1-stride`` variant of the architecture is needed beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_KERAS_EPS = 1e-3
_TORCH_EPS = 1e-5
_BRANCHES = {"2a": "1", "2b": "2", "2c": "3"}

Weights = dict[str, NDArray[np.float32]]


def read_tfjs(folder: Path) -> Weights:
    """All tensors of a tfjs layers model, fp32, by Keras name. Raises ValueError on a malformed
    folder.
    """
    manifest = json.loads((folder / "model.json").read_text(encoding="utf-8"))["weightsManifest"]
    weights: Weights = {}
    for group in manifest:
        blob = b"".join((folder / Path(name).name).read_bytes() for name in group["paths"])
        offset = 0
        for item in group["weights"]:
            if item["dtype"] != "float32":
                raise ValueError(f"{item['name']} has dtype {item['dtype']}, not float32")
            count = int(np.prod(item["shape"], dtype=np.int64))
            flat = np.frombuffer(blob, "<f4", count, offset)
            weights[item["name"]] = flat.reshape(item["shape"])
            offset += 4 * count
        if offset != len(blob):
            raise ValueError(f"the shards hold {len(blob)} bytes, the manifest names {offset}")
    return weights


def _names() -> list[tuple[str, str, str, str]]:
    """(Keras conv, Keras bn, torch conv, torch bn) for every convolution."""
    names = [("conv1", "bn_conv1", "conv1", "bn1")]
    for stage, blocks in zip((2, 3, 4, 5), (3, 4, 6, 3), strict=True):
        for index in range(blocks):
            block = f"{stage}{chr(ord('a') + index)}"
            prefix = f"layer{stage - 1}.{index}"
            if index == 0:
                short = f"{prefix}.downsample"
                names.append(
                    (f"res{block}_branch1", f"bn{block}_branch1", f"{short}.0", f"{short}.1")
                )
            for branch, number in _BRANCHES.items():
                keras = f"{block}_branch{branch}"
                names.append(
                    (f"res{keras}", f"bn{keras}", f"{prefix}.conv{number}", f"{prefix}.bn{number}")
                )
    return names


def _find(weights: Weights, layer: str, part: str) -> NDArray[np.float32]:
    """A layer's tensor; tfjs writes ``layer/part`` or ``layer/layer_1/part`` by version."""
    for name, value in weights.items():
        pieces = name.split("/")
        if pieces[0] == layer and pieces[-1].split(":")[0] == part:
            return value
    raise ValueError(f"the file lacks {layer}/{part}")


def _conv_bn(weights: Weights, conv: str, bn: str) -> dict[str, NDArray[np.float32]]:
    """Kernel as (o, i, h, w); the convolution's bias and the two eps folded into the batch norm."""
    mean = _find(weights, bn, "moving_mean") - _find(weights, conv, "bias")
    return {
        "conv.weight": _find(weights, conv, "kernel").transpose(3, 2, 0, 1),
        "bn.weight": _find(weights, bn, "gamma"),
        "bn.bias": _find(weights, bn, "beta"),
        "bn.running_mean": mean,
        "bn.running_var": _find(weights, bn, "moving_variance") + (_KERAS_EPS - _TORCH_EPS),
    }


def resnet50_state(folder: Path, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict for ``wanted`` (timm resnet50's own, for its counters). Raises ValueError."""
    weights = read_tfjs(folder)
    state: dict[str, NDArray[np.float32]] = {}
    for conv, bn, torch_conv, torch_bn in _names():
        for part, value in _conv_bn(weights, conv, bn).items():
            layer, _, field = part.partition(".")
            state[f"{torch_conv if layer == 'conv' else torch_bn}.{field}"] = value
    state["conv1.weight"] = state["conv1.weight"][:, ::-1]  # the network was trained on BGR
    state["fc.weight"] = _find(weights, "fc1000", "kernel").T
    state["fc.bias"] = _find(weights, "fc1000", "bias")
    tensors = {k: torch.from_numpy(np.array(v, order="C")) for k, v in state.items()}
    counters = {k: v for k, v in wanted.items() if k.endswith("num_batches_tracked")}
    return tensors | counters
