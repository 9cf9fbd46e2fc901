"""StudentsService with a real StudentService: what it shows, tunes, predicts and explains."""

from __future__ import annotations

import asyncio
import hashlib
import json
import uuid
from collections.abc import Awaitable

import grpc
import grpc.aio
import numpy as np
import pytest
from stillhouse.common.v1 import items_pb2
from stillhouse.gateway.v1 import students_pb2 as pb
from stillhouse.gateway.v1 import students_pb2_grpc
from stillhouse.student.v1 import student_pb2

from services.common.catalogue import load_catalogue
from services.common.channels import to_error
from services.common.errors import (
    InvalidInput,
    NotFound,
    PeerUnavailable,
    Precondition,
)
from services.common.tensors import from_message
from services.gateway import students
from services.gateway.peers import Peers
from services.gateway.settings import GatewaySettings
from services.gateway.store import Store
from services.gateway.student_files import StudentFiles
from services.gateway.students_servicer import StudentsServicer
from tests.gateway.parts import serving
from tests.gateway.student_world import (
    CLASSES,
    CONCEPTS,
    FRUIT,
    SEGMENTS,
    Gateway,
    World,
    inline,
    made,
    refused,
    up,
)


def weight_of(version: pb.StudentVersion, label: str, concept: str) -> float:
    found = next(one for one in version.class_concepts if one.label == label)
    return next((one.weight for one in found.concepts if one.concept == concept), 0.0)


async def test_a_version_shows_its_weights_by_influence(gateway: Gateway) -> None:
    version = await gateway.version()
    assert version.name == f"{FRUIT}/versions/1"
    assert version.report.digest == gateway.world.made.report_digest
    assert [one.label for one in version.class_concepts] == list(CLASSES)
    file = StudentFiles(gateway.world.blobs).load(
        "default", version.student_ref.weights_digest, version.student_ref.card_digest
    )
    for row, shown in enumerate(version.class_concepts):
        assert shown.concepts, "every class of this task has a concept"
        weights = {one.concept: one.weight for one in shown.concepts}
        kept = np.flatnonzero(file.weight[row])
        assert weights == {CONCEPTS[j]: pytest.approx(file.weight[row, j]) for j in kept}
        sizes = [abs(one.influence) for one in shown.concepts]
        assert sizes == sorted(sizes, reverse=True)
        means = file.card["class_mean_presence"][row]
        for one in shown.concepts:
            mean = means[CONCEPTS.index(one.concept)]
            assert one.influence == pytest.approx(one.weight * mean, rel=1e-4)
        assert shown.intercept == pytest.approx(file.bias[row])


async def test_students_and_versions_are_listed(gateway: Gateway) -> None:
    students.publish(gateway.store, "default", "other", made("j9"))
    listed = await gateway.stub.ListStudents(pb.ListStudentsRequest(project="default"))
    assert [one.name for one in listed.students] == [
        "projects/default/students/other", FRUIT,
    ]  # fmt: skip
    found = await gateway.student()
    assert found.head_version == found.promoted_version == f"{FRUIT}/versions/1"
    assert list(found.classes) == list(CLASSES)
    request = pb.ListStudentVersionsRequest(student=FRUIT, page_size=1)
    versions = await gateway.stub.ListStudentVersions(request)
    assert [one.name for one in versions.versions] == [f"{FRUIT}/versions/1"]
    assert versions.next_page_token == ""
    assert not versions.versions[0].class_concepts


async def test_predictions_come_in_order_with_a_status_for_the_bad(gateway: Gateway) -> None:
    items = inline(gateway.world, 70)
    items[5] = items_pb2.ImageInput(item_id="bad", data=b"damaged")
    items[6] = items_pb2.ImageInput(item_id="by digest", digest=next(iter(gateway.world.regions)))
    response = await gateway.stub.PredictImages(pb.PredictImagesRequest(student=FRUIT, items=items))
    assert [one.item_id for one in response.results] == [item.item_id for item in items]
    assert response.results[5].error.message == "the image is damaged"
    assert list(response.classes) == list(CLASSES)
    assert response.version == f"{FRUIT}/versions/1"
    truth = gateway.world.labels
    right = [
        one.prediction.label == CLASSES[truth[one.item_id]]
        for one in response.results
        if one.item_id in truth
    ]
    assert len(right) == 68
    assert np.mean(right) > 0.8
    for one in response.results:
        if one.HasField("prediction"):
            assert from_message(one.prediction.probabilities).sum() == pytest.approx(1, abs=1e-5)
    assert gateway.concepts.largest_batch <= 32


async def test_only_bad_images_need_no_student(gateway: Gateway) -> None:
    items = [
        items_pb2.ImageInput(item_id="a", data=b"x"),
        items_pb2.ImageInput(item_id="b", data=b"y"),
    ]
    response = await gateway.stub.PredictImages(pb.PredictImagesRequest(student=FRUIT, items=items))
    assert [one.WhichOneof("outcome") for one in response.results] == ["error", "error"]


async def test_an_explanation_points_at_the_region(gateway: Gateway) -> None:
    items = [*inline(gateway.world, 12), items_pb2.ImageInput(item_id="bad", data=b"x")]
    response = await gateway.stub.ExplainImages(
        pb.ExplainImagesRequest(student=FRUIT, items=items, top=3)
    )
    assert response.results[-1].WhichOneof("outcome") == "error"
    assert not response.results[-1].boxes
    right = 0
    for one in response.results[:-1]:
        label = gateway.world.labels[one.item_id]
        assert len(one.boxes) == 1 + SEGMENTS
        assert one.explanation.label in CLASSES
        total = sum(c.contribution for c in one.explanation.contributions)
        expected = one.explanation.intercept + total + one.explanation.rest
        assert one.explanation.logit == pytest.approx(expected, abs=1e-4)
        own = [c for c in one.explanation.contributions if c.concept == CONCEPTS[label]]
        right += bool(own) and own[0].region == 1 + label
    assert right >= 8
    # 60 x 40 pixels: the short edge goes to 260, and of the long one the middle 260 are seen.
    whole, first = response.results[0].boxes[:2]
    assert whole.top == 0
    assert whole.left == pytest.approx((390 - 260) / 2 / 390)
    assert first.left == whole.left
    assert first.right == pytest.approx((whole.left + whole.right) / 2)
    assert first.bottom == pytest.approx((whole.top + whole.bottom) / 2)


async def test_another_encoder_than_the_students_is_refused(gateway: Gateway) -> None:
    gateway.concepts.encoder_digest = "f" * 64
    request = pb.PredictImagesRequest(student=FRUIT, items=inline(gateway.world, 1))
    error = await refused(gateway.stub.PredictImages(request))
    assert isinstance(error, Precondition)
    assert "encoder" in error.message


async def test_tuning_makes_a_version_and_undo_restores_the_weights(gateway: Gateway) -> None:
    before = await gateway.version()
    response = await gateway.stub.TuneStudent(up())
    assert response.version.name == f"{FRUIT}/versions/2"
    assert response.version.parent == before.name
    effect = response.version.effects[0]
    after = await gateway.version()
    assert after.name == response.version.name
    assert after.student_ref.weights_digest != before.student_ref.weights_digest
    weight = weight_of(after, "Pink-Lady", "long neck")
    assert weight == pytest.approx(effect.weight_after, rel=1e-5)
    assert effect.box_low - 1e-6 <= weight <= effect.box_high + 1e-6
    assert (await gateway.student()).promoted_version == before.name
    undone = await gateway.stub.UndoTuning(pb.UndoTuningRequest(student=FRUIT))
    assert undone.version.student_ref == before.student_ref
    assert await gateway.version() == before
    events = await gateway.events()
    assert [(one.sequence, one.kind) for one in events] == [
        (1, "created"), (2, "tuned"), (3, "undone"),
    ]  # fmt: skip
    assert events[1].description == (
        'stillhouse students tune fruit --class Pink-Lady --up "long neck" --factor 2'
    )
    assert list(events[1].effects) == list(response.version.effects)
    assert list(events[1].changes) == list(response.version.changes)
    error = await refused(gateway.stub.UndoTuning(pb.UndoTuningRequest(student=FRUIT)))
    assert isinstance(error, Precondition)


async def test_a_repeated_tuning_makes_one_version(gateway: Gateway) -> None:
    request = up()
    request.request_id = str(uuid.uuid4())
    first, second = await asyncio.gather(*(gateway.stub.TuneStudent(request) for _ in range(2)))
    assert first == second
    assert await gateway.stub.TuneStudent(request) == first
    assert len(await gateway.events()) == 2
    request.edits[0].factor = 3
    assert isinstance(await refused(gateway.stub.TuneStudent(request)), InvalidInput)


async def test_of_two_tunings_at_once_one_is_told(gateway: Gateway) -> None:
    answers = await asyncio.gather(
        gateway.stub.TuneStudent(up()),
        gateway.stub.TuneStudent(up("Pear", "leaf")),
        return_exceptions=True,
    )
    failed = [one for one in answers if isinstance(one, grpc.aio.AioRpcError)]
    events = await gateway.events()
    assert len(failed) + len(events) == 3
    assert all(isinstance(to_error(one), Precondition) for one in failed)


async def test_a_branch_starts_where_it_is_told(gateway: Gateway) -> None:
    await gateway.stub.TuneStudent(up())
    request = up("Pear", "leaf")
    request.base_version = "1"
    branch = (await gateway.stub.TuneStudent(request)).version
    assert branch.parent == f"{FRUIT}/versions/1"
    assert (await gateway.events())[-1].description.endswith("--factor 2 --base 1")
    assert weight_of(await gateway.version(), "Pink-Lady", "long neck") == weight_of(
        await gateway.version("1"), "Pink-Lady", "long neck"
    )


async def test_promotion_sets_what_predicts(gateway: Gateway) -> None:
    await gateway.stub.TuneStudent(up())
    name = f"{FRUIT}/versions/"
    promoted = await gateway.stub.PromoteStudentVersion(
        pb.PromoteStudentVersionRequest(name=f"{name}head", request_id="once")
    )
    assert promoted.student.promoted_version == f"{name}2"
    request = pb.PredictImagesRequest(student=FRUIT, items=inline(gateway.world, 2))
    assert (await gateway.stub.PredictImages(request)).version == f"{name}2"
    request.version = "1"
    assert (await gateway.stub.PredictImages(request)).version == f"{name}1"
    back = await gateway.stub.PromoteStudentVersion(
        pb.PromoteStudentVersionRequest(name=f"{name}previous")
    )
    assert back.student.promoted_version == f"{name}1"
    again = await gateway.stub.PromoteStudentVersion(
        pb.PromoteStudentVersionRequest(name=f"{name}head", request_id="once")
    )
    assert again.student.promoted_version == f"{name}2", "the answer of then"
    assert (await gateway.student()).promoted_version == f"{name}1"


async def test_compare_shows_weights_and_metrics(gateway: Gateway) -> None:
    tuned = (await gateway.stub.TuneStudent(up())).version
    response = await gateway.stub.CompareStudentVersions(
        pb.CompareStudentVersionsRequest(student=FRUIT, first_version="1", second_version="head")
    )
    found = {(one.label, one.concept): one for one in response.differences}
    edited = found["Pink-Lady", "long neck"]
    assert edited.first_weight == pytest.approx(tuned.effects[0].weight_before, rel=1e-5)
    assert edited.second_weight == pytest.approx(tuned.effects[0].weight_after, rel=1e-5)
    sizes = [abs(one.first_weight - one.second_weight) for one in response.differences]
    assert sizes == sorted(sizes, reverse=True)
    assert {"fidelity", "accuracy"} <= set(response.first_metrics) & set(response.second_metrics)
    same = await gateway.stub.CompareStudentVersions(
        pb.CompareStudentVersionsRequest(
            student=FRUIT, first_version="1", second_version="promoted"
        )
    )
    assert not same.differences


async def test_exported_files_can_be_read(gateway: Gateway) -> None:
    request = pb.ExportStudentRequest(name=f"{FRUIT}/versions/head")
    files = (await gateway.stub.ExportStudent(request)).files
    assert files
    for one in files:
        chunks = gateway.blob_stub.ReadBlob(
            pb.ReadBlobRequest(project="default", digest=one.blob.digest)
        )
        data = b"".join([message.chunk async for message in chunks])
        assert hashlib.sha256(data).hexdigest() == one.blob.digest


@pytest.mark.parametrize("digest", ["", "../../x", "0" * 64])
async def test_blobs_that_are_not_there(gateway: Gateway, digest: str) -> None:
    async def read() -> None:
        request = pb.ReadBlobRequest(project="default", digest=digest)
        async for _ in gateway.blob_stub.ReadBlob(request):
            pytest.fail("there is no such blob")

    error = await refused(read())
    assert isinstance(error, NotFound if digest == "0" * 64 else InvalidInput)


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (up("Pink-Ladi"), "did you mean 'Pink-Lady'"),
        (up(concept="red skins"), "did you mean 'red skin'"),
        (up(factor=1.0), "factor"),
        (up(factor=float("nan")), "factor"),
        (up(factor=101), "factor"),
        (pb.TuneStudentRequest(student=FRUIT), "edits"),
        (pb.TuneStudentRequest(student=FRUIT, edits=[student_pb2.ConceptEdit()] * 101), "edits"),
        (pb.TuneStudentRequest(student="fruit"), "student"),
    ],
)
async def test_bad_edits(gateway: Gateway, request_: pb.TuneStudentRequest, says: str) -> None:
    error = await refused(gateway.stub.TuneStudent(request_))
    assert isinstance(error, InvalidInput)
    assert says in error.message
    assert len(await gateway.events()) == 1


async def test_bad_calls(gateway: Gateway) -> None:
    stub, items = gateway.stub, inline(gateway.world, 1)
    bad: list[Awaitable[object]] = [
        stub.PredictImages(pb.PredictImagesRequest(student=FRUIT)),
        stub.PredictImages(pb.PredictImagesRequest(student=FRUIT, items=items * 101)),
        stub.PredictImages(pb.PredictImagesRequest(student=FRUIT, items=items, version="x")),
        stub.ExplainImages(pb.ExplainImagesRequest(student=FRUIT, items=items, label="Plum")),
        stub.ExplainImages(pb.ExplainImagesRequest(student=FRUIT, items=items, top=-1)),
        stub.ListConceptExamples(pb.ListConceptExamplesRequest(student=FRUIT)),
        stub.ListConceptExamples(pb.ListConceptExamplesRequest(student=FRUIT, concepts=[" "])),
        stub.ListStudents(pb.ListStudentsRequest(project="default", page_size=-1)),
        stub.CompareStudentVersions(pb.CompareStudentVersionsRequest(student=FRUIT)),
        stub.GetStudent(pb.GetStudentRequest(name="projects/default/datasets/fruit")),
    ]
    for answer in bad:
        assert isinstance(await refused(answer), InvalidInput)
    missing = stub.GetStudent(pb.GetStudentRequest(name="projects/default/students/none"))
    assert isinstance(await refused(missing), NotFound)


async def test_an_absent_student_service_is_said_to_be_absent(world: World, store: Store) -> None:
    students.publish(store, "default", "fruit", world.made)
    peers = Peers.connect(GatewaySettings(student_address="127.0.0.1:9"))
    servicer = StudentsServicer(store, world.blobs, peers, load_catalogue())
    async with serving(
        lambda server: students_pb2_grpc.add_StudentsServiceServicer_to_server(servicer, server)
    ) as channel:
        stub = students_pb2_grpc.StudentsServiceStub(channel)
        error = await refused(stub.TuneStudent(up()))
        assert isinstance(error, PeerUnavailable)
        version = await stub.GetStudentVersion(
            pb.GetStudentVersionRequest(name=f"{FRUIT}/versions/head")
        )
        assert version.version.class_concepts, "what needs no other service still answers"
    await peers.close()


def test_a_damaged_student_is_an_error(world: World) -> None:
    files = StudentFiles(world.blobs)
    card = json.loads(world.blobs.get("default", world.made.card_digest))
    card["concepts"] = card["concepts"][:-1]
    short = world.blobs.put("default", json.dumps(card).encode())
    noise = world.blobs.put("default", b"noise")
    for weights, other in (
        (world.made.weights_digest, short),
        (noise, world.made.card_digest),
        (world.made.weights_digest, noise),
    ):
        with pytest.raises(InvalidInput):
            files.load("default", weights, other)
