"""The gateway's Open Inference Protocol: a tuned student on images, and the teacher behind it."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from stillhouse.concepts.v1 import concepts_pb2_grpc
from stillhouse.gateway.v1 import students_pb2
from stillhouse.inference.v2 import open_inference_pb2 as pb
from stillhouse.inference.v2 import open_inference_pb2_grpc

from services.common.catalogue import load_catalogue
from services.common.images import Limits
from services.common.inference.images import ImageLimits
from services.common.inference.servicer import InferenceServicer
from services.common.inference.tensors import array_of, elements_of, raw_elements
from services.common.tensors import from_message
from services.gateway.inference import GatewayInference
from services.gateway.peers import Peers
from services.gateway.settings import GatewaySettings
from services.gateway.store import Store
from services.gateway.student_inference import StudentInference
from services.teacher.inference import TeacherInference
from tests.gateway.parts import make_photo, serving
from tests.gateway.student_world import (
    CLASSES,
    FRUIT,
    WIDTH,
    Gateway,
    World,
    inline,
    up,
)
from tests.teacher.image_world import CLASSES as TEACHER_CLASSES
from tests.teacher.image_world import MODEL, teacher

LIMITS = ImageLimits(Limits(), 100)


@dataclass(frozen=True)
class Front:
    """The protocol at the gateway, over real student and teacher services."""

    oip: open_inference_pb2_grpc.GRPCInferenceServiceAsyncStub
    gateway: Gateway


@asynccontextmanager
async def teaching(folder: Path) -> AsyncIterator[grpc.aio.Channel]:
    """A teacher's own protocol on a channel."""
    async with teacher(folder) as made:
        own: InferenceServicer[Any] = InferenceServicer(
            "teacher", TeacherInference(made, LIMITS), lambda: True
        )
        add = open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server
        async with serving(lambda server: add(own, server)) as channel:
            yield channel


@pytest.fixture
async def front(
    world: World, store: Store, gateway: Gateway, tmp_path: Path
) -> AsyncIterator[Front]:
    add = open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server
    made_up = gateway.concepts
    async with (
        teaching(tmp_path / "teacher") as models,
        serving(
            lambda s: concepts_pb2_grpc.add_ConceptsServiceServicer_to_server(made_up, s)
        ) as concepts,
    ):
        peers = Peers.connect(GatewaySettings(student_address=world.address))
        peers = replace(
            peers,
            concepts=concepts_pb2_grpc.ConceptsServiceStub(concepts),
            inference=open_inference_pb2_grpc.GRPCInferenceServiceStub(models),
        )
        backend = StudentInference(store, world.blobs, peers, load_catalogue(), LIMITS)
        servicer = GatewayInference(backend, peers, lambda: True)
        async with serving(lambda server: add(servicer, server)) as channel:
            yield Front(open_inference_pb2_grpc.GRPCInferenceServiceStub(channel), gateway)
        await peers.close()


def images(name: str, data: list[bytes], version: str = "", **fields: Any) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=name, model_version=version, **fields)
    request.inputs.add(name="images", datatype="BYTES", shape=[len(data)])
    request.raw_input_contents.append(raw_elements(data))
    return request


def outputs(response: pb.ModelInferResponse) -> dict[str, Any]:
    pairs = zip(response.outputs, response.raw_output_contents, strict=True)
    return {
        one.name: elements_of(one, raw) if one.datatype == "BYTES" else array_of(one, raw)
        for one, raw in pairs
    }


async def predicted(front: Front, version: str) -> list[Any]:
    request = students_pb2.PredictImagesRequest(
        student=FRUIT, version=version, items=inline(front.gateway.world, 4)
    )
    reply = await front.gateway.stub.PredictImages(request)
    return [one.prediction for one in reply.results]


async def test_a_tuned_student_answers_as_predict_and_explain_do(front: Front) -> None:
    await front.gateway.stub.TuneStudent(up())
    data = [one.data for one in inline(front.gateway.world, 4)]
    answers = {}
    for version in ("1", "2"):
        response = await front.oip.ModelInfer(images("students/fruit", data, version))
        assert response.model_version == version
        found = answers[version] = outputs(response)
        for at, one in enumerate(await predicted(front, version)):
            np.testing.assert_array_equal(found["logits"][at], from_message(one.logits))
            np.testing.assert_array_equal(
                found["probabilities"][at], from_message(one.probabilities)
            )
        explain = students_pb2.ExplainImagesRequest(
            student=FRUIT, version=version, items=inline(front.gateway.world, 4)
        )
        told = (await front.gateway.stub.ExplainImages(explain)).results
        words = np.array(found["concepts"]).reshape(4, 10)
        for at, one in enumerate(told):
            parts = one.explanation.contributions
            assert [word.decode() for word in words[at] if word] == [p.concept for p in parts]
            np.testing.assert_allclose(
                found["contributions"][at][: len(parts)], [p.contribution for p in parts], rtol=1e-6
            )
    assert (answers["1"]["logits"] != answers["2"]["logits"]).any()


async def test_the_promoted_version_answers_where_none_is_named(front: Front) -> None:
    await front.gateway.stub.TuneStudent(up())
    data = [one.data for one in inline(front.gateway.world, 1)]
    for name in ("students/fruit", "default/students/fruit", FRUIT):
        assert (await front.oip.ModelInfer(images(name, data))).model_version == "1"
    promote = students_pb2.PromoteStudentVersionRequest(name=f"{FRUIT}/versions/2")
    await front.gateway.stub.PromoteStudentVersion(promote)
    assert (await front.oip.ModelInfer(images("students/fruit", data))).model_version == "2"


async def test_embeddings_are_the_whole_images(front: Front) -> None:
    world = front.gateway.world
    data = [one.data for one in inline(world, 2)]
    request = images("students/fruit", data)
    request.outputs.add(name="embeddings")
    found = outputs(await front.oip.ModelInfer(request))
    assert list(found) == ["embeddings"]
    for at, one in enumerate(data):
        wanted = world.regions[hashlib.sha256(one).hexdigest()][0]
        np.testing.assert_array_equal(found["embeddings"][at], wanted)


async def test_a_student_tells_its_tensors_and_versions(front: Front) -> None:
    await front.gateway.stub.TuneStudent(up())
    told = await front.oip.ModelMetadata(pb.ModelMetadataRequest(name="students/fruit"))
    assert list(told.versions) == ["1", "2"]
    assert {one.name: list(one.shape) for one in told.outputs} == {
        "logits": [-1, len(CLASSES)],
        "probabilities": [-1, len(CLASSES)],
        "concepts": [-1, -1],
        "contributions": [-1, -1],
        "embeddings": [-1, WIDTH],
    }
    ready = pb.ModelReadyRequest(name="students/fruit", version="2")
    assert (await front.oip.ModelReady(ready)).ready


async def code_of(work: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await work
    return caught.value.code(), caught.value.details() or ""


async def test_a_damaged_image_fails_the_call_by_its_index(front: Front) -> None:
    data = [one.data for one in inline(front.gateway.world, 1)]
    code, said = await code_of(front.oip.ModelInfer(images("students/fruit", [*data, b"broken"])))
    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert said.startswith("images[1]:")


async def test_what_is_not_there_is_refused(front: Front) -> None:
    data = [one.data for one in inline(front.gateway.world, 1)]
    label = images("students/fruit", data)
    label.parameters["label"].string_param = "Pear-ish"
    top = images("students/fruit", data)
    top.parameters["top"].int64_param = 0
    for request, wanted in (
        (images("students/none", data), grpc.StatusCode.NOT_FOUND),
        (images("students/fruit", data, "9"), grpc.StatusCode.NOT_FOUND),
        (images("students/fruit", data, "x"), grpc.StatusCode.INVALID_ARGUMENT),
        (images("none", data), grpc.StatusCode.NOT_FOUND),
        (label, grpc.StatusCode.INVALID_ARGUMENT),
        (top, grpc.StatusCode.INVALID_ARGUMENT),
    ):
        assert (await code_of(front.oip.ModelInfer(request)))[0] == wanted, request.model_name
    front.gateway.concepts.encoder_digest = "f" * 64
    asked = front.oip.ModelInfer(images("students/fruit", data))
    assert (await code_of(asked))[0] == grpc.StatusCode.FAILED_PRECONDITION


async def test_models_are_the_teachers(front: Front) -> None:
    found = outputs(await front.oip.ModelInfer(images(MODEL, [make_photo(1), make_photo(2)])))
    assert found["logits"].shape == (2, len(TEACHER_CLASSES))
    code, said = await code_of(front.oip.ModelInfer(images(MODEL, [make_photo(1), b"broken"])))
    assert (code, said[:10]) == (grpc.StatusCode.INVALID_ARGUMENT, "images[1]:")
    told = await front.oip.ModelMetadata(pb.ModelMetadataRequest(name=MODEL))
    assert [one.name for one in told.outputs] == ["logits", "probabilities", "embeddings"]
    assert (await front.oip.ModelReady(pb.ModelReadyRequest(name=MODEL))).ready
    listed = (await front.oip.RepositoryIndex(pb.RepositoryIndexRequest())).models
    states = {one.name: one.state for one in listed}
    assert (states[MODEL], states["students/fruit"]) == ("READY", "READY")
    data = [one.data for one in inline(front.gateway.world, 1)]
    await front.oip.ModelInfer(images("students/fruit", data))
    counted = (await front.oip.ModelStatistics(pb.ModelStatisticsRequest())).model_stats
    assert {one.name for one in counted} >= {MODEL, "students/fruit"}
