"""The exported graph says what the service says, alone and behind an encoder."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from services.common.errors import Internal, InvalidInput
from services.student import onnx_export
from services.student.artefacts import Student, probabilities
from services.student.data import TextBank, presence_of
from services.student.onnx_export import export_student

DIM = 6


def make_student(*, loss: str = "softmax", whole_image_only: bool = False) -> Student:
    rng = np.random.default_rng(3)
    weight = rng.normal(size=(3, 9)).astype(np.float32) * (rng.random((3, 9)) < 0.7)
    bank = TextBank(
        rng.normal(size=(9, DIM)).astype(np.float16),
        rng.normal(size=DIM).astype(np.float32) * 0.2,
        rng.normal(size=DIM).astype(np.float32) * 0.2,
    )
    card = {
        "classes": ["a", "b", "c"],
        "concepts": [f"word {k}" for k in range(9)],
        "loss": loss,
        "whole_image_only": whole_image_only,
    }
    mean, std = rng.random(9).astype(np.float32), rng.random(9).astype(np.float32) + 0.1
    return Student(weight, rng.normal(size=3).astype(np.float32), mean, std, bank, card)


def make_encoder(
    *, opset: int = 17, dim: int = DIM, output: str = "regions", name: str = "cosines"
) -> bytes:
    """Pixels of a 4 x 4 image, averaged per row, times a matrix; inner names collide with ours."""
    rng = np.random.default_rng(4)
    shape = [1, 4, 4, 3]
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["centred"], to=TensorProto.FLOAT),
            helper.make_node("Reshape", ["centred", "shape"], [name]),
            helper.make_node("MatMul", [name, "weight"], [output]),
        ],
        "encoder",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [4, dim])],
        [
            numpy_helper.from_array(np.array([4, 12], np.int64), "shape"),
            numpy_helper.from_array(rng.normal(size=(12, dim)).astype(np.float32) / 255, "weight"),
        ],
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def run(data: bytes, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


@pytest.mark.parametrize("loss", ["softmax", "bce"])
@pytest.mark.parametrize("whole_image_only", [False, True])
@pytest.mark.parametrize("count", [1, 5])
def test_head_agrees_with_the_service(loss, whole_image_only, count):
    student = make_student(loss=loss, whole_image_only=whole_image_only)
    regions = np.random.default_rng(count).normal(size=(count, DIM)).astype(np.float32)
    got = run(export_student(student, None), {"regions": regions})
    kept = regions[:1] if whole_image_only else regions
    found = presence_of(kept.astype(np.float16), np.array([0, len(kept)]), student.bank)
    logits = student.logits(found.values)
    np.testing.assert_allclose(got["presence"], found.values[0], atol=2e-6)
    np.testing.assert_allclose(got["logits"], logits[0], atol=2e-5)
    np.testing.assert_allclose(got["probabilities"], probabilities(logits, loss)[0], atol=1e-5)


@pytest.mark.parametrize("opset", [13, 17, 18, 20])
def test_joined_file_takes_images(opset):
    student = make_student()
    encoder = make_encoder(opset=opset)
    image = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 3), dtype=np.uint8)
    regions = run(encoder, {"image": image})["regions"]
    alone = run(export_student(student, None), {"regions": regions})
    joined = run(export_student(student, encoder), {"image": image})
    assert set(joined) == {"logits", "probabilities", "presence"}
    for name in joined:
        np.testing.assert_allclose(joined[name], alone[name], atol=1e-5)


def test_names_travel_with_the_file():
    model = onnx.load_model_from_string(export_student(make_student(), make_encoder()))
    names = {one.key: json.loads(one.value) for one in model.metadata_props}
    assert names["classes"] == ["a", "b", "c"]
    assert names["concepts"][8] == "word 8"
    assert names["loss"] == "softmax"


def test_same_student_gives_the_same_file():
    assert export_student(make_student(), None) == export_student(make_student(), None)


def external() -> bytes:
    model = onnx.load_model_from_string(make_encoder())
    weight = model.graph.initializer[1]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="/etc/passwd")
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("encoder", "what"),
    [
        (b"", "not a valid model"),
        (b"\xff\xfe not onnx", "not a valid model"),
        (external(), "in the file itself"),
        (make_encoder(dim=DIM + 1), "regions of width 7"),
        (make_encoder(output="other"), "expected image and regions"),
        (make_encoder(opset=12), "opset 13"),
        (make_encoder(name="logits"), "overlapping names"),
    ],
)
def test_encoders_that_do_not_fit_are_refused(encoder, what):
    with pytest.raises(InvalidInput, match=what):
        export_student(make_student(), encoder)


def test_a_file_that_disagrees_is_not_handed_out(monkeypatch):
    student = make_student()
    other = replace(student, bias=student.bias + np.array([1, 0, 0], np.float32))
    real = onnx_export.student_model
    monkeypatch.setattr(onnx_export, "student_model", lambda _, opset: real(other, opset))
    with pytest.raises(Internal, match="does not agree"):
        export_student(student, None)
