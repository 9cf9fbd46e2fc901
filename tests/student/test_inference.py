"""The student service as a process, asked by the Open Inference Protocol and by its own."""

from __future__ import annotations

import grpc
import numpy as np
import pytest
from stillhouse.inference.v2 import open_inference_pb2 as pb
from stillhouse.inference.v2 import open_inference_pb2_grpc
from stillhouse.student.v1 import student_pb2

from services.common.inference.tensors import array_of, elements_of
from services.common.tensors import from_message
from services.student.artefacts import read_student
from services.student.data import presence_of
from tests.student import suite
from tests.student.suite import CLASSES, PROJECT

TOP = 3


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with suite.service(tmp_path_factory.mktemp("student")) as service:
        yield service


@pytest.fixture(scope="module")
def data(running):
    return suite.make_data(running.blobs)


@pytest.fixture(scope="module")
def ref(running, data):
    return running.student(suite.concept_request(data, "first"))


@pytest.fixture(scope="module")
def oip(running):
    return open_inference_pb2_grpc.GRPCInferenceServiceStub(running.channel)


def request_of(ref, name: str, values: np.ndarray, datatype: str) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(
        model_name=f"{PROJECT}/{ref.weights_digest}", model_version=ref.card_digest
    )
    request.parameters["top"].int64_param = TOP
    request.inputs.add(name=name, datatype=datatype, shape=values.shape)
    request.raw_input_contents.append(np.ascontiguousarray(values).tobytes())
    return request


def outputs(response):
    pairs = zip(response.outputs, response.raw_output_contents, strict=True)
    return {
        one.name: elements_of(one, raw) if one.datatype == "BYTES" else array_of(one, raw)
        for one, raw in pairs
    }


def rows_of(data, count: int, regions: int) -> np.ndarray:
    """The first regions of the first items that have so many, [count, regions, D] float16."""
    found = [rows[:regions] for rows in data.region_rows if len(rows) >= regions]
    return np.stack(found[:count]).astype(np.float16)


def own(running, ref, rows):
    """Predict's logits and Explain's contributions of the same items."""
    items = [suite.region_input(one) for one in rows]
    predict = student_pb2.PredictRequest(project=PROJECT, student=ref, items=items)
    explain = student_pb2.ExplainRequest(project=PROJECT, student=ref, items=items, top=TOP)
    return (
        [one.prediction for one in running.stub.Predict(predict).results],
        [one.explanation for one in running.stub.Explain(explain).results],
    )


def check(found, predictions, explanations) -> None:
    for at, (prediction, explanation) in enumerate(zip(predictions, explanations, strict=True)):
        np.testing.assert_array_equal(found["logits"][at], from_message(prediction.logits))
        wanted = from_message(prediction.probabilities)
        np.testing.assert_array_equal(found["probabilities"][at], wanted)
        words = [text.decode() for text in found["concepts"][at * TOP : (at + 1) * TOP]]
        parts = explanation.contributions
        assert words == [one.concept for one in parts] + [""] * (TOP - len(parts))
        listed = [one.contribution for one in parts] + [0] * (TOP - len(parts))
        np.testing.assert_allclose(found["contributions"][at], listed, rtol=1e-6)


def test_embeddings_give_what_predict_and_explain_give(running, data, ref, oip):
    rows = rows_of(data, 3, 4)
    found = outputs(oip.ModelInfer(request_of(ref, "embeddings", rows, "FP16"), timeout=60))
    check(found, *own(running, ref, rows))


def test_one_vector_is_the_whole_image(running, data, ref, oip):
    rows = rows_of(data, 2, 1)
    found = outputs(oip.ModelInfer(request_of(ref, "embeddings", rows[:, 0], "FP16"), timeout=60))
    check(found, *own(running, ref, rows))


def test_presence_gives_the_same(running, data, ref, oip):
    rows, student = rows_of(data, 3, 4), read_student(running.blobs, PROJECT, ref)
    values = np.stack(
        [presence_of(one, np.array([0, len(one)]), student.bank).values[0] for one in rows]
    )
    found = outputs(oip.ModelInfer(request_of(ref, "presence", values, "FP32"), timeout=60))
    check(found, *own(running, ref, rows))


def test_contributions_are_those_of_the_class_asked_for(running, data, ref, oip):
    request = request_of(ref, "embeddings", rows_of(data, 1, 4), "FP16")
    request.parameters["label"].string_param = CLASSES[2]
    request.outputs.add(name="contributions")
    explain = student_pb2.ExplainRequest(
        project=PROJECT,
        student=ref,
        items=[suite.region_input(rows_of(data, 1, 4)[0])],
        label=CLASSES[2],
        top=TOP,
    )
    wanted = running.stub.Explain(explain).results[0].explanation.contributions
    found = outputs(oip.ModelInfer(request, timeout=60))["contributions"][0]
    np.testing.assert_allclose(found[: len(wanted)], [one.contribution for one in wanted], 1e-6)


def test_the_index_has_what_is_in_memory(ref, oip, data):
    oip.ModelInfer(request_of(ref, "embeddings", rows_of(data, 1, 1), "FP16"), timeout=60)
    request = pb.RepositoryIndexRequest(repository_name=PROJECT)
    listed = oip.RepositoryIndex(request, timeout=30).models
    assert (ref.card_digest, "READY") in {(one.version, one.state) for one in listed}
    name = f"{PROJECT}/{ref.weights_digest}"
    ready = pb.ModelReadyRequest(name=name, version=ref.card_digest)
    assert oip.ModelReady(ready, timeout=30).ready
    metadata = pb.ModelMetadataRequest(name=name, version=ref.card_digest)
    told = oip.ModelMetadata(metadata, timeout=30)
    assert told.inputs[0].shape[-1] == rows_of(data, 1, 1).shape[-1]


@pytest.mark.parametrize(
    ("name", "values", "datatype"),
    [
        ("embeddings", np.zeros((1, 1, 3)), "FP16"),
        ("embeddings", np.zeros((1, 0, 8)), "FP16"),
        ("embeddings", np.full((1, 1, 8), np.nan), "FP16"),
        ("embeddings", np.zeros((257, 8)), "FP16"),
        ("embeddings", np.zeros((1, 8)), "FP32"),
        ("embeddings", np.zeros(8), "FP16"),
        ("presence", np.zeros((1, 2)), "FP32"),
        ("presence", np.full((1, 2), 1.5), "FP32"),
        ("images", np.zeros((1, 8)), "FP16"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(data, ref, oip, name, values, datatype):
    width = rows_of(data, 1, 1).shape[-1] if name == "embeddings" else len(data.words)
    if values.shape[-1:] == ({"embeddings": 8, "presence": 2}.get(name, -1),):
        values = np.resize(values, (*values.shape[:-1], width)) if values.size else values
    if (name, values.max(initial=0)) == ("presence", 0):
        values = values[:, :-1]
    dtype = {"FP16": np.float16, "FP32": np.float32}[datatype]
    with pytest.raises(grpc.RpcError) as caught:
        oip.ModelInfer(request_of(ref, name, values.astype(dtype), datatype), timeout=60)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_a_student_is_asked_by_both_digests(data, ref, oip):
    good = request_of(ref, "embeddings", rows_of(data, 1, 1), "FP16")
    for field, value, code in (
        ("model_version", "", grpc.StatusCode.INVALID_ARGUMENT),
        ("model_version", "1", grpc.StatusCode.INVALID_ARGUMENT),
        ("model_version", "0" * 64, grpc.StatusCode.NOT_FOUND),
        ("model_name", "../" + "0" * 64, grpc.StatusCode.INVALID_ARGUMENT),
        ("model_name", f"elsewhere/{ref.weights_digest}", grpc.StatusCode.NOT_FOUND),
    ):
        request = pb.ModelInferRequest()
        request.CopyFrom(good)
        setattr(request, field, value)
        with pytest.raises(grpc.RpcError) as caught:
            oip.ModelInfer(request, timeout=30)
        assert caught.value.code() == code, (field, value)
