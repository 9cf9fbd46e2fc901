"""An encoder's ONNX file from elsewhere: read, checked, and what it takes. Nothing is run here."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from services.common.errors import InvalidInput

_OLDEST_OPSET = 13
_LARGEST_SIDE = 2048


def read_encoder(data: bytes, dim: int) -> onnx.ModelProto:
    """An encoder that ends in `regions` float32 [R, dim]. Raises InvalidInput for anything else."""
    try:
        model = onnx.load_model_from_string(data)
        _refuse_external(model)
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError, ValueError, TypeError) as error:
        raise InvalidInput(
            f"encoder_onnx: not a valid model: {str(error)[:200]}", field="encoder_onnx"
        ) from None
    inputs, outputs = [x.name for x in model.graph.input], {x.name: x for x in model.graph.output}
    if inputs != ["image"] or "regions" not in outputs:
        raise InvalidInput(
            f"encoder_onnx: has {inputs} in and {sorted(outputs)} out, expected image and regions",
            field="encoder_onnx",
        )
    shape = outputs["regions"].type.tensor_type.shape.dim
    if len(shape) != 2 or shape[1].dim_value not in (0, dim):
        raise InvalidInput(
            f"encoder_onnx: regions of width {shape[-1].dim_value if shape else None}, the student "
            f"needs {dim}",
            field="encoder_onnx",
        )
    if opset_of(model) < _OLDEST_OPSET:
        raise InvalidInput("encoder_onnx: needs opset 13 or newer", field="encoder_onnx")
    return model


def _refuse_external(model: onnx.ModelProto) -> None:
    """Weights in other files would be read from paths that the caller chose."""
    if any(one.data_location == TensorProto.EXTERNAL for one in _tensors(model.graph)):
        raise ValueError("weights must lie in the file itself")


def _tensors(graph: onnx.GraphProto) -> list[TensorProto]:
    found = [*graph.initializer]
    for node in graph.node:
        for attribute in node.attribute:
            found += [*attribute.tensors, *([attribute.t] if attribute.HasField("t") else [])]
            inner = [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
            for one in inner:
                found += _tensors(one)
    return found


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the standard operators that a model is written in."""
    return max(
        (one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), default=0
    )


def sample_image(encoder: onnx.ModelProto) -> npt.NDArray[np.uint8]:
    """A random image of the size that an encoder takes, uint8 [1, side, side, 3]."""
    dims = [one.dim_value for one in encoder.graph.input[0].type.tensor_type.shape.dim]
    if (
        len(dims) != 4
        or dims[0] not in (0, 1)
        or not 1 <= dims[1] == dims[2] <= _LARGEST_SIDE
        or dims[3] != 3
    ):
        raise InvalidInput(f"encoder_onnx: image of shape {dims}", field="encoder_onnx")
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (1, dims[1], dims[2], 3), dtype=np.uint8)
