"""The teacher service as a process, asked by the Open Inference Protocol and by its own."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image
from stillhouse.common.v1 import items_pb2
from stillhouse.inference.v2 import open_inference_pb2 as pb
from stillhouse.inference.v2 import open_inference_pb2_grpc
from stillhouse.teacher.v1 import teacher_pb2, teacher_pb2_grpc

from services.common.blobs import BlobStore
from services.common.inference.tensors import array_of, elements_of, raw_elements
from services.common.tensors import from_message, pack_arrays
from tests.support import hostile_batch, photo, service
from tests.teacher.image_world import CLASSES, MODEL, NAME, make_catalogue

Tensors = dict[str, np.ndarray | list[bytes]]
Index = dict[str, pb.RepositoryIndexResponse.ModelIndex]


class Both:
    """Stubs of both protocols on one channel."""

    def __init__(self, channel: grpc.Channel, folder: Path) -> None:
        self.teacher = teacher_pb2_grpc.TeacherServiceStub(channel)
        self.oip = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        self.health = health_pb2_grpc.HealthStub(channel)
        self.blobs = BlobStore(str(folder / "blobs"))

    def infer(self, request: pb.ModelInferRequest) -> tuple[pb.ModelInferResponse, Tensors]:
        response = self.oip.ModelInfer(request, timeout=60)
        found: Tensors = {}
        for one, raw in zip(response.outputs, response.raw_output_contents, strict=True):
            is_bytes = one.datatype == "BYTES"
            found[one.name] = elements_of(one, raw) if is_bytes else array_of(one, raw)
        return response, found

    def classify(self, data: list[bytes]) -> tuple[np.ndarray, np.ndarray, str]:
        """Logits [N, K], features [N, D] and the model's digest."""
        request = teacher_pb2.ClassifyRequest(
            model=NAME,
            items=[items_pb2.ImageInput(data=one) for one in data],
            outputs=[teacher_pb2.CLASSIFY_OUTPUT_LOGITS, teacher_pb2.CLASSIFY_OUTPUT_FEATURES],
        )
        reply = self.teacher.Classify(request, timeout=60)
        found = [one.classification for one in reply.results]
        return (
            np.stack([from_message(one.logits) for one in found]),
            np.stack([from_message(one.features) for one in found]),
            reply.model_digest,
        )


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    folder = tmp_path_factory.mktemp("teacher")
    settings = {
        "TEACHER_CATALOGUE": str(make_catalogue(folder)),
        "TEACHER_PRELOAD": MODEL,
        "TEACHER_THREADS": "1",
        "TEACHER_MAX_BATCH_ITEMS": "16",
    }
    with (
        service("teacher", folder, **settings) as running,
        grpc.insecure_channel(running.address) as channel,
    ):
        yield Both(channel, folder)


def encoded(*data: bytes, name: str = MODEL, **fields: object) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=name, **fields)  # type: ignore[arg-type]
    request.inputs.add(name="images", datatype="BYTES", shape=[len(data)])
    request.raw_input_contents.append(raw_elements(list(data)))
    return request


def refused(both: Both, request: pb.ModelInferRequest) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        both.oip.ModelInfer(request, timeout=60)
    return caught.value.code(), caught.value.details()


def test_the_server_tells_what_it_is(both: Both) -> None:
    assert both.oip.ServerLive(pb.ServerLiveRequest(), timeout=10).live
    assert both.oip.ServerReady(pb.ServerReadyRequest(), timeout=10).ready
    told = both.oip.ServerMetadata(pb.ServerMetadataRequest(), timeout=10)
    assert told.name == "stillhouse-teacher"
    assert {"statistics", "model_repository", "classification"} <= set(told.extensions)
    check = health_pb2.HealthCheckRequest(service="inference.GRPCInferenceService")
    assert both.health.Check(check, timeout=10).status == health_pb2.HealthCheckResponse.SERVING


def test_a_model_tells_its_tensors(both: Both) -> None:
    _, features, digest = both.classify([photo(0)])
    told = both.oip.ModelMetadata(pb.ModelMetadataRequest(name=MODEL), timeout=30)
    assert list(told.versions) == [digest]
    assert [(one.name, one.datatype, list(one.shape)) for one in told.inputs] == [
        ("images", "BYTES", [-1])
    ]
    assert [(one.name, one.datatype, list(one.shape)) for one in told.outputs] == [
        ("logits", "FP32", [-1, len(CLASSES)]),
        ("probabilities", "FP32", [-1, len(CLASSES)]),
        ("embeddings", "FP16", [-1, features.shape[1]]),
    ]


def test_answers_are_those_of_our_own_call(both: Both) -> None:
    data = [photo(n) for n in range(5)]
    logits, features, digest = both.classify(data)
    response, found = both.infer(encoded(*data, id="call-1"))
    assert (response.model_version, response.id, response.model_name) == (digest, "call-1", MODEL)
    np.testing.assert_array_equal(found["logits"], logits)
    np.testing.assert_array_equal(found["embeddings"], features)
    powers = np.exp(logits.astype(np.float64))
    np.testing.assert_allclose(
        found["probabilities"], powers / powers.sum(axis=1, keepdims=True), rtol=1e-6
    )


def test_all_ways_to_send_images_give_one_answer(both: Both) -> None:
    out = io.BytesIO()
    pixels = np.asarray(Image.open(io.BytesIO(photo(3, size=(50, 40)))))
    Image.fromarray(pixels).save(out, "PNG")
    wanted = both.classify([out.getvalue()])[0]
    typed = pb.ModelInferRequest(model_name=f"default/{MODEL}")
    typed.inputs.add(name="images", datatype="BYTES", shape=[1, 1])
    typed.inputs[0].contents.bytes_contents.append(out.getvalue())
    plain = pb.ModelInferRequest(model_name=NAME)
    plain.inputs.add(name="images", datatype="UINT8", shape=[1, *pixels.shape])
    plain.raw_input_contents.append(pixels.tobytes())
    for request in (typed, plain):
        np.testing.assert_array_equal(both.infer(request)[1]["logits"], wanted)


def test_outputs_are_those_asked_for(both: Both) -> None:
    request = encoded(photo(1))
    request.outputs.add(name="embeddings")
    best = request.outputs.add(name="probabilities")
    best.parameters["classification"].int64_param = 2
    response, found = both.infer(request)
    assert [one.name for one in response.outputs] == ["embeddings", "probabilities"]
    order = np.argsort(-both.classify([photo(1)])[0][0])
    assert [text.split(b":")[2].decode() for text in found["probabilities"]] == [
        CLASSES[column] for column in order[:2]
    ]


def test_one_bad_image_fails_the_call_by_its_index(both: Both) -> None:
    for name, (data, usable) in hostile_batch().items():
        request = encoded(photo(0), data)
        if usable:
            assert len(both.infer(request)[1]["logits"]) == 2, name
            continue
        code, said = refused(both, request)
        assert (code, said[:10]) == (grpc.StatusCode.INVALID_ARGUMENT, "images[1]:"), name


def test_a_crafted_request_is_refused(both: Both) -> None:
    good = encoded(photo(0))
    huge, short, unknown, twice = (encoded(photo(0)) for _ in range(4))
    huge.inputs[0].shape[0] = 1 << 60
    short.raw_input_contents[0] = short.raw_input_contents[0][:-1]
    unknown.outputs.add(name="labels")
    twice.inputs.append(twice.inputs[0])
    many = encoded(*[b"x"] * 17)
    for request in (huge, short, unknown, twice, many, pb.ModelInferRequest(model_name=MODEL)):
        assert refused(both, request)[0] == grpc.StatusCode.INVALID_ARGUMENT
    shared = encoded(photo(0))
    shared.inputs[0].parameters["shared_memory_region"].string_param = "r"
    assert refused(both, shared)[0] == grpc.StatusCode.UNIMPLEMENTED
    assert len(both.infer(good)[1]["logits"]) == 1


def test_unknown_names_and_versions_are_not_found(both: Both) -> None:
    for name, version in (("nothing", ""), ("other/nothing", ""), (MODEL, "2"), ("students/s", "")):
        request = encoded(photo(0), name=name, model_version=version)
        assert refused(both, request)[0] == grpc.StatusCode.NOT_FOUND, name
    assert refused(both, encoded(photo(0), name="a/b/c/d"))[0] == grpc.StatusCode.INVALID_ARGUMENT


def test_a_language_model_is_refused_with_the_way_to_ask_it(both: Both) -> None:
    code, said = refused(both, encoded(photo(0), name="smollm2-135m"))
    assert code == grpc.StatusCode.FAILED_PRECONDITION
    assert "Score" in said


def test_the_index_follows_memory(both: Both) -> None:
    def index(project: str = "", **fields: bool) -> Index:
        request = pb.RepositoryIndexRequest(repository_name=project, **fields)
        return {one.name: one for one in both.oip.RepositoryIndex(request, timeout=30).models}

    found = index()
    assert found[MODEL].state == "READY"
    assert found["efficientnet-lite0"].state == "UNAVAILABLE"
    assert "Score" in found["smollm2-135m"].reason
    assert set(index(ready=True)) >= {MODEL}
    assert "efficientnet-lite0" not in index(ready=True)
    ready = pb.ModelReadyRequest(name="shop/tiny-head")
    assert f"shop/{MODEL}" in index("shop")
    digest = both.classify([photo(0)])[2]
    width = both.classify([photo(0)])[1].shape[1]
    arrays = {"weight": np.ones((2, width), np.float32), "bias": np.zeros(2, np.float32)}
    record = {
        "kind": "linear_head",
        "backbone": MODEL,
        "backbone_digest": digest,
        "head": both.blobs.put("shop", pack_arrays(arrays)),
        "classes": ["a", "b"],
    }
    both.blobs.put_ref("shop", "models/tiny-head", json.dumps(record).encode())
    assert not both.oip.ModelReady(ready, timeout=30).ready
    load = pb.RepositoryModelLoadRequest(model_name="shop/tiny-head")
    both.oip.RepositoryModelLoad(load, timeout=60)
    assert both.oip.ModelReady(ready, timeout=30).ready
    assert index("shop")["shop/tiny-head"].state == "READY"
    assert "tiny-head" not in index()
    assert both.infer(encoded(photo(0), name="shop/tiny-head"))[1]["logits"].shape == (1, 2)


def test_statistics_count_calls_and_items(both: Both) -> None:
    def counted() -> pb.ModelStatistics:
        request = pb.ModelStatisticsRequest(name=MODEL)
        return both.oip.ModelStatistics(request, timeout=10).model_stats[0]

    both.infer(encoded(photo(0)))
    before = counted()
    both.infer(encoded(*[photo(n) for n in range(3)]))
    refused(both, encoded(b"broken"))
    after = counted()
    assert after.inference_count == before.inference_count + 3
    assert after.inference_stats.success.count == before.inference_stats.success.count + 1
    assert after.inference_stats.fail.count == before.inference_stats.fail.count + 1
    assert after.inference_stats.compute_infer.ns > before.inference_stats.compute_infer.ns
    assert sum(one.compute_infer.count for one in after.batch_stats) == (
        after.inference_stats.success.count
    )
