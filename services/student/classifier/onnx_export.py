"""A classifier as ONNX: `image` uint8 [batch, S, S, 3] in, `logits` and `probabilities` out.

Normalisation is inside; what is left to the caller is the resize and crop that the metadata name.
Every file is run and compared with torch before it is handed out.
"""

from __future__ import annotations

import copy
import importlib.util
import io
import json
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from services.common.errors import Unsupported
from services.student.timing import median_ms
from services.torch_common.preprocess import Preprocessing

OPSET = 17
_CHECK_IMAGES = 2
_TOLERANCE = 1e-3
"""Of logits, relative to the largest, and of probabilities: two runtimes sum in other orders."""


def export_classifier(
    module: nn.Module,
    preprocessing: Preprocessing,
    classes: Sequence[str],
    *,
    multi_label: bool,
) -> bytes:
    """Return ONNX bytes; `module` is in eval mode and is not touched.

    Raises Unsupported where the network cannot be written, or the file does not agree with it.
    """
    graph = _Pixels(copy.deepcopy(module).cpu(), preprocessing, multi_label).eval()
    size = preprocessing.size_px
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (_CHECK_IMAGES, size, size, 3), dtype=np.uint8)
    model = _described(_written(graph, pixels[:1]), preprocessing, classes)
    with torch.inference_mode():
        expected = [one.numpy() for one in graph(torch.from_numpy(pixels))]
    for got, want in zip(_run(model, pixels), expected, strict=True):
        scale = max(1.0, float(np.abs(want).max()))
        if got.shape != want.shape or not float(np.abs(got - want).max()) <= _TOLERANCE * scale:
            raise Unsupported("the ONNX file does not agree with the network")
    return bytes(model.SerializeToString(deterministic=True))


class _Pixels(nn.Module):
    """uint8 [B, S, S, 3] to logits and probabilities [B, K]."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, preprocessing: Preprocessing, multi_label: bool) -> None:
        super().__init__()
        self.network, self.multi_label = network, multi_label
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(preprocessing.std).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = image.permute(0, 3, 1, 2).to(torch.float32) / 255.0
        logits = self.network((x - self.mean) / self.std)
        return logits, torch.sigmoid(logits) if self.multi_label else torch.softmax(logits, dim=1)


def _written(graph: nn.Module, pixels: npt.NDArray[np.uint8]) -> onnx.ModelProto:
    buffer = io.BytesIO()
    names = ["image", "logits", "probabilities"]
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            # The newer exporter needs a package that is not among ours; the older one says it is
            # old.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                graph,
                (torch.from_numpy(pixels),),
                buffer,  # type: ignore[arg-type]
                input_names=names[:1],
                output_names=names[1:],
                dynamic_axes={name: {0: "batch"} for name in names},
                opset_version=OPSET,
                dynamo=False,
            )
        return onnx.load_from_string(buffer.getvalue())
    except Exception as error:  # the exporter raises almost any type for what it does not know
        raise Unsupported(f"the architecture cannot be written: {error}"[:300]) from error


def _described(
    model: onnx.ModelProto, preprocessing: Preprocessing, classes: Sequence[str]
) -> onnx.ModelProto:
    """The model without source positions, with what its numbers mean in its metadata."""
    _clear_docs(model.graph)
    model.producer_name, model.producer_version = "stillhouse", ""
    facts = {
        "classes": json.dumps(list(classes)),
        "image": "RGB uint8 [batch, size, size, 3]",
        "size_px": str(preprocessing.size_px),
        "crop_pct": str(preprocessing.crop_pct),
        "interpolation": preprocessing.interpolation,
        "mode": preprocessing.mode,
    }
    onnx.helper.set_model_props(model, facts)
    onnx.checker.check_model(model)
    return model


def _clear_docs(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        node.doc_string = ""
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _clear_docs(attribute.g)


def onnx_latency_ms(data: bytes, size_px: int, threads: int) -> float | None:
    """Median milliseconds of one image alone on the CPU; None where onnxruntime is not there."""
    if importlib.util.find_spec("onnxruntime") is None:
        return None
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    image = {"image": np.zeros((1, size_px, size_px, 3), np.uint8)}
    return median_ms(lambda: session.run(["logits"], image))


def _run(model: onnx.ModelProto, pixels: npt.NDArray[np.uint8]) -> list[npt.NDArray[Any]]:
    """Logits and probabilities, by onnxruntime where it is installed."""
    try:
        if importlib.util.find_spec("onnxruntime") is None:
            return list(ReferenceEvaluator(model).run(None, {"image": pixels}))
        import onnxruntime

        session = onnxruntime.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        return list(session.run(None, {"image": pixels}))
    except Exception as error:  # the runtimes' exceptions share no public base
        raise Unsupported(f"the ONNX file does not run: {error}"[:300]) from error
