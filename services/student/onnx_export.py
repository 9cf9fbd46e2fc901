"""A student as ONNX: region embeddings in, logits out; with an encoder, image in, logits out.

The graph is presence and the linear student of services.common.presence and artefacts.py, with the
same rounding of embeddings to float16. Every file is run and compared before it is handed out.
"""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, compose, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from services.common.errors import Internal, InvalidInput
from services.common.presence import centred_directions
from services.student.artefacts import Student, probabilities
from services.student.data import Floats, presence_of
from services.student.onnx_encoder import opset_of, read_encoder, sample_image

OPSET = 18
_PREFIX = "student_"
_SMALLEST_NORM = 1e-12
_TOLERANCE = 2e-4
_CHECK_REGIONS = 12
_IR_VERSION = 10


def export_student(student: Student, encoder: bytes | None) -> bytes:
    """Return ONNX bytes, checked against this service's own predictions.

    Without an encoder the input is `regions` float32 [regions, D]; with one it is the encoder's
    `image`. Outputs: `logits` [K], `probabilities` [K], `presence` [M], float32. Class and concept
    names are in the metadata. Raises InvalidInput for an encoder that does not fit.
    """
    if encoder is None:
        model = student_model(student, OPSET)
        _check_head(student, model)
        return bytes(model.SerializeToString())
    source = read_encoder(encoder, student.bank.text.shape[1])
    head = student_model(student, opset_of(source))
    _check_head(student, head)
    merged = _join(source, head)
    _describe(merged, student)
    _check_joined(student, source, merged)
    return bytes(merged.SerializeToString())


def student_model(student: Student, opset: int) -> onnx.ModelProto:
    """The graph from `regions` to `logits`, `probabilities` and `presence`."""
    dim, words = student.bank.text.shape[1], len(student.concepts)
    regions = helper.make_tensor_value_info("regions", TensorProto.FLOAT, ["regions", dim])
    sizes = {
        "logits": len(student.classes),
        "probabilities": len(student.classes),
        "presence": words,
    }
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [size])
        for name, size in sizes.items()
    ]
    graph = helper.make_graph(
        _nodes(student, opset), "student", [regions], outputs, _initializers(student)
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=_IR_VERSION,
        producer_name="stillhouse",
    )
    _describe(model, student)
    onnx.checker.check_model(model, full_check=True)
    return model


def _initializers(student: Student) -> list[TensorProto]:
    bank = student.bank
    arrays: dict[str, npt.NDArray[Any]] = {
        "image_mean": bank.image_mean,
        "directions": np.ascontiguousarray(centred_directions(bank.text, bank.text_mean).T),
        "smallest_norm": np.array(_SMALLEST_NORM, np.float32),
        "columns": np.array([1], np.int64),
        "rows": np.array([0], np.int64),
        "mean": student.mean,
        "std": student.std,
        "weight": np.ascontiguousarray(student.weight.T),
        "bias": student.bias,
    }
    return [numpy_helper.from_array(array, name) for name, array in arrays.items()]


def _nodes(student: Student, opset: int) -> list[onnx.NodeProto]:
    node = helper.make_node
    # The axes of ReduceMax are an attribute before opset 18 and an input from then on.
    highest = (
        node("ReduceMax", ["cosines", "rows"], ["highest"], keepdims=0)
        if opset >= 18
        else node("ReduceMax", ["cosines"], ["highest"], axes=[0], keepdims=0)
    )
    last = (
        node("Sigmoid", ["logits"], ["probabilities"])
        if student.loss == "bce"
        else node("Softmax", ["logits"], ["probabilities"], axis=0)
    )
    first = "whole" if student.card.get("whole_image_only") else "regions"
    return [
        *([node("Gather", ["regions", "rows"], ["whole"])] if first == "whole" else []),
        node("Cast", [first], ["rounded"], to=TensorProto.FLOAT16),
        node("Cast", ["rounded"], ["embeddings"], to=TensorProto.FLOAT),
        node("Sub", ["embeddings", "image_mean"], ["centred"]),
        node("Mul", ["centred", "centred"], ["squares"]),
        node("ReduceSum", ["squares", "columns"], ["energy"], keepdims=1),
        node("Sqrt", ["energy"], ["length"]),
        node("Max", ["length", "smallest_norm"], ["norm"]),
        node("Div", ["centred", "norm"], ["unit"]),
        node("MatMul", ["unit", "directions"], ["cosines"]),
        highest,
        node("Relu", ["highest"], ["presence"]),
        node("Sub", ["presence", "mean"], ["shifted"]),
        node("Div", ["shifted", "std"], ["standardised"]),
        node("MatMul", ["standardised", "weight"], ["weighted"]),
        node("Add", ["weighted", "bias"], ["logits"]),
        last,
    ]


def _join(encoder: onnx.ModelProto, head: onnx.ModelProto) -> onnx.ModelProto:
    # Names inside may collide. Ours get the prefix: the encoder's loop bodies refer to names
    # outside them, which onnx's renaming does not follow.
    prefixed = compose.add_prefix(head, _PREFIX, rename_inputs=False, rename_outputs=False)
    prefixed.ir_version = encoder.ir_version
    kept = ["logits", "probabilities", "presence"]
    try:
        # Not by merge_models' own `outputs`: it drops nodes that only loop bodies refer to.
        joined = compose.merge_models(encoder, prefixed, io_map=[("regions", "regions")])
    except (ValueError, onnx.checker.ValidationError) as error:
        text = f"encoder_onnx: cannot be joined: {str(error)[:200]}"
        raise InvalidInput(text, field="encoder_onnx") from None
    wanted = [one for one in joined.graph.output if one.name in kept]
    del joined.graph.output[:]
    joined.graph.output.extend(wanted)
    return joined


def _describe(model: onnx.ModelProto, student: Student) -> None:
    names = {"classes": student.classes, "concepts": student.concepts, "loss": student.loss}
    del model.metadata_props[:]
    helper.set_model_props(model, {key: json.dumps(value) for key, value in names.items()})


def _expected(student: Student, regions: Floats) -> Floats:
    kept = regions[:1] if student.card.get("whole_image_only") else regions
    found = presence_of(kept.astype(np.float16), np.array([0, len(kept)]), student.bank)
    expected = probabilities(student.logits(found.values), student.loss)[0]
    return np.asarray(expected, dtype=np.float32)


def _check_head(student: Student, model: onnx.ModelProto) -> None:
    rng = np.random.default_rng(0)
    regions = rng.normal(size=(_CHECK_REGIONS, student.bank.text.shape[1])).astype(np.float32)
    regions += student.bank.image_mean
    names = [one.name for one in model.graph.output]
    answer = dict(
        zip(names, ReferenceEvaluator(model).run(None, {"regions": regions}), strict=True)
    )
    _compare(answer["probabilities"], _expected(student, regions))


def _check_joined(student: Student, encoder: onnx.ModelProto, merged: onnx.ModelProto) -> None:
    """Run encoder and joined file on one image; the reference evaluator is too slow for this."""
    onnx.checker.check_model(merged)
    if importlib.util.find_spec("onnxruntime") is None:
        return
    image = sample_image(encoder)
    regions = _run(encoder, "regions", image)
    _compare(_run(merged, "probabilities", image), _expected(student, regions))


def _run(model: onnx.ModelProto, output: str, image: npt.NDArray[np.uint8]) -> Floats:
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        return np.asarray(session.run([output], {"image": image})[0], dtype=np.float32)
    except Exception as error:  # onnxruntime's exceptions share no public base
        raise InvalidInput(
            f"encoder_onnx: does not run: {str(error)[:200]}", field="encoder_onnx"
        ) from None


def _compare(got: Floats, want: Floats) -> None:
    if got.shape != want.shape or not float(np.abs(got - want).max()) <= _TOLERANCE:
        raise Internal("the ONNX file does not agree with the student")
