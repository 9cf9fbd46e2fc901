"""Students: the tree of versions on both databases, and StudentsService with a real StudentService.

The student is trained by that service on made-up regions, whose truth is known; only
ConceptsService is a
stand-in, which gives a photo the regions that were made up for it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from stillhouse.common.v1 import items_pb2
from stillhouse.concepts.v1 import concepts_pb2, concepts_pb2_grpc
from stillhouse.gateway.v1 import students_pb2 as pb
from stillhouse.gateway.v1 import students_pb2_grpc
from stillhouse.student.v1 import student_pb2, student_pb2_grpc

from services.common.blobs import BlobStore
from services.common.catalogue import load_catalogue
from services.common.channels import to_error
from services.common.errors import (
    InvalidInput,
    NotFound,
    PeerUnavailable,
    Precondition,
    StillhouseError,
)
from services.common.manifest import Item, Manifest
from services.common.presence import presence
from services.common.shards import SHARD_ITEMS, pack_regions, pack_rows
from services.common.tensors import Array, from_message, pack_arrays, to_message
from services.gateway import students
from services.gateway.blob_servicer import BlobServicer
from services.gateway.paging import page
from services.gateway.peers import Peers
from services.gateway.settings import GatewaySettings
from services.gateway.store import Store, StudentRow, VersionRow
from services.gateway.student_files import StudentFiles
from services.gateway.student_messages import tune_command
from services.gateway.students_servicer import StudentsServicer
from tests.gateway.conftest import make_photo, serving

FRUIT = "projects/default/students/fruit"
ENCODER = "projects/default/encoders/effl2-minilm"
CLASSES = ("Granny-Smith", "Pear", "Pink-Lady")
CONCEPTS = ("red skin", "green skin", "long neck", '$stem "x"', "leaf", "basket")
N, WIDTH, SEGMENTS = 120, 16, 3
MAP = np.array([[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 3, 3], [3, 3, 3, 3]], np.uint8)


# ---- The tree of versions, without any service.


def made(job: str = "projects/default/distillationJobs/j1", **fields: Any) -> students.Made:
    base = students.Made(
        job=job,
        dataset="projects/default/datasets/fruit",
        teacher="projects/default/models/t",
        encoder=ENCODER,
        classes=CLASSES,
        weights_digest="1" * 64,
        card_digest="2" * 64,
        report_digest="3" * 64,
        description="stillhouse distill concept fruit",
    )
    return replace(base, **fields)


def tune(store: Store, base: int, mark: str, head: int | None = None) -> VersionRow:
    tuned = students.Tuned(base, mark * 64, "c" * 64, [], [], f"tuned {mark}")
    with store.write() as session:
        student = students.find(session, "default", "fruit", lock=True)
        return students.add_tuned(session, student, head or student.head, tuned)


def undo(store: Store) -> VersionRow:
    with store.write() as session:
        student = students.find(session, "default", "fruit", lock=True)
        return students.undo(session, student, "undo")


def promote(store: Store, version: str) -> StudentRow:
    with store.write() as session:
        student = students.find(session, "default", "fruit", lock=True)
        row = students.resolve(session, student, version, "")
        students.promote(session, student, row, f"promote {row.number}")
        return student


def kinds(store: Store) -> list[tuple[int, str, int]]:
    student = students.get(store, "default", "fruit")
    events, _ = students.events_page(store, student, page(0, ""))
    return [(one.sequence, one.kind, one.version) for one in events]


def test_a_job_publishes_once(any_store: Store) -> None:
    first = students.publish(any_store, "default", "fruit", made())
    again = students.publish(any_store, "default", "fruit", made())
    assert (first.number, again.number, again.parent) == (1, 1, 0)
    student = students.get(any_store, "default", "fruit")
    assert (student.head, student.promoted, student.previous) == (1, 1, 0)
    assert kinds(any_store) == [(1, "created", 1)]


def test_a_second_job_adds_a_root_and_serves_the_first(any_store: Store) -> None:
    students.publish(any_store, "default", "fruit", made())
    second = students.publish(any_store, "default", "fruit", made("j2", weights_digest="9" * 64))
    student = students.get(any_store, "default", "fruit")
    assert (second.number, second.parent) == (2, 0)
    assert (student.head, student.promoted) == (2, 1)


def test_undo_walks_up_and_tuning_branches(any_store: Store) -> None:
    students.publish(any_store, "default", "fruit", made())
    tune(any_store, 1, "a")
    tune(any_store, 2, "b")
    assert undo(any_store).number == 2
    assert undo(any_store).number == 1
    with pytest.raises(Precondition, match="nothing to undo"):
        undo(any_store)
    branch = tune(any_store, 1, "d")
    assert (branch.number, branch.parent) == (4, 1)
    student = students.get(any_store, "default", "fruit")
    versions, _ = students.versions_page(any_store, student, page(0, ""))
    assert [(one.number, one.parent) for one in versions] == [(1, 0), (2, 1), (3, 2), (4, 1)]
    assert [one.weights_digest[0] for one in versions] == list("1abd")
    assert [kind for _, kind, _ in kinds(any_store)] == [
        "created", "tuned", "tuned", "undone", "undone", "tuned",
    ]  # fmt: skip


def test_tuning_what_has_moved_is_refused(any_store: Store) -> None:
    students.publish(any_store, "default", "fruit", made())
    tune(any_store, 1, "a")
    with pytest.raises(Precondition, match="changed meanwhile") as caught:
        tune(any_store, 1, "b", head=1)
    assert "head_version" in caught.value.differences
    assert [number for _, _, number in kinds(any_store)] == [1, 2]


def test_promotion_rolls_back(any_store: Store) -> None:
    students.publish(any_store, "default", "fruit", made())
    with pytest.raises(Precondition, match="no version"):
        promote(any_store, "previous")
    tune(any_store, 1, "a")
    assert promote(any_store, "head").promoted == 2
    assert promote(any_store, "2").previous == 1  # again is no second promotion
    assert promote(any_store, "previous").promoted == 1
    assert promote(any_store, "previous").promoted == 2
    assert [kind for _, kind, _ in kinds(any_store)].count("promoted") == 3


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("9", NotFound),
        ("0", NotFound),
        ("latest", InvalidInput),
        ("-1", InvalidInput),
        ("²", InvalidInput),
        ("9" * 30, InvalidInput),
        ("projects/default/students/other/versions/1", InvalidInput),
        ("projects/default/students/fruit", InvalidInput),
    ],
)
def test_versions_that_are_none(store: Store, text: str, error: type[StillhouseError]) -> None:
    students.publish(store, "default", "fruit", made())
    with store.read() as session, pytest.raises(error):
        students.resolve(session, students.find(session, "default", "fruit"), text, "head")


def test_the_command_of_a_tuning() -> None:
    def edit(label: str, concept: str, factor: float, up: bool = True) -> student_pb2.ConceptEdit:
        direction = student_pb2.DIRECTION_UP if up else student_pb2.DIRECTION_DOWN
        return student_pb2.ConceptEdit(
            label=label, concept=concept, factor=factor, direction=direction
        )

    student = StudentRow(project="default", student_id="fruit")
    one = edit("Pink-Lady", "red skin", 2)
    plain = 'stillhouse students tune fruit --class Pink-Lady --up "red skin" --factor 2'
    assert tune_command(student, [one]) == plain
    student.project = "shop"
    assert tune_command(student, [one], 3) == f"{plain} --base 3 --project shop"
    student.project = "default"
    same = [one, edit("Pink-Lady", 'a "$b`\\', 2, up=False)]
    assert tune_command(student, same) == (
        'stillhouse students tune fruit --class Pink-Lady --up "red skin" '
        '--down "a \\"\\$b\\`\\\\" --factor 2'
    )
    assert tune_command(student, [one, edit("Pear", "leaf", 1.5)]) == (
        'tuned together: Pink-Lady up "red skin" by 2, Pear up leaf by 1.5'
    )


# ---- StudentsService, with a StudentService in a process of its own.


@dataclass(frozen=True)
class World:
    """Made-up data in a blob store, and the address of the StudentService on it."""

    blobs: BlobStore
    address: str
    made: students.Made
    regions: dict[str, Array]
    labels: dict[str, int]
    photos: dict[str, bytes]


def make_regions(rng: np.random.Generator, text: Array, label: int) -> Array:
    """Whole image and segments; segment 1 + label % 3 shows the class's own concept."""
    rows = rng.normal(0, 0.2, (1 + SEGMENTS, WIDTH))
    rows[1 + label] += text[label]
    rows[0] += 0.5 * text[label]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype("<f2")


def make_world(blobs: BlobStore, address: str) -> tuple[World, student_pb2.ConceptRecipe]:
    rng = np.random.default_rng(7)
    text, _ = np.linalg.qr(rng.normal(size=(WIDTH, len(CONCEPTS))))
    text = text.T.astype("<f2")
    items, regions, logits, photos = [], [], [], {}
    for n in range(N):
        label = n % 3
        data = make_photo(n, (60, 40))
        digest = blobs.put("default", data)
        split = ("train", "train", "train", "val", "test")[n // 3 % 5]
        items.append(Item(f"{CLASSES[label]}/{n:03d}.jpg", digest, split, (label,)))
        regions.append(make_regions(rng, text, label))
        logits.append((4 * np.eye(3)[label] + rng.normal(0, 0.5, 3)).astype("<f4"))
        photos[items[-1].item_id] = data
    manifest = blobs.put("default", Manifest(CLASSES, False, tuple(items)).to_bytes())
    parts = [slice(at, at + SHARD_ITEMS) for at in range(0, N, SHARD_ITEMS)]
    teacher = [blobs.put("default", pack_rows("logits", logits[part])) for part in parts]
    shards = [
        blobs.put("default", pack_regions([(one, MAP) for one in regions[part]])) for part in parts
    ]
    means = {"text_mean": np.zeros(WIDTH, "<f4"), "image_mean": np.zeros(WIDTH, "<f4")}
    bank = blobs.put("default", pack_arrays({"text": text, **means}))

    def ref(digest: str) -> items_pb2.BlobRef:
        return items_pb2.BlobRef(digest=digest)

    recipe = student_pb2.ConceptRecipe(
        data=student_pb2.TrainingData(
            manifest=ref(manifest),
            teacher_shards=map(ref, teacher),
            region_shards=map(ref, shards),
        ),
        concepts=CONCEPTS,
        concept_embeddings=ref(bank),
        nec=2,
        control_draws=-1,
        provenance={"encoder_digest": "e" * 64},
    )
    by_digest = {item.digest: one for item, one in zip(items, regions, strict=True)}
    labels = {item.item_id: item.labels[0] for item in items}
    return World(blobs, address, made(), by_digest, labels, photos), recipe


async def train(world: World, recipe: student_pb2.ConceptRecipe) -> World:
    """Train the student by the real service."""
    async with grpc.aio.insecure_channel(world.address) as channel:
        stub = student_pb2_grpc.StudentServiceStub(channel)
        request = student_pb2.TrainRequest(project="default", run_id="r1", concept=recipe)
        events = [event async for event in stub.Train(request, wait_for_ready=True)]
    assert events[-1].WhichOneof("event") == "result", events[-1]
    result = events[-1].result.concept
    version = replace(
        world.made,
        weights_digest=result.student.weights_digest,
        card_digest=result.student.card_digest,
        report_digest=result.report.digest,
    )
    return replace(world, made=version)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("student")
    env = os.environ | {
        "STUDENT_PORT": "0",
        "STUDENT_BLOB_URL": str(root / "blobs"),
        "STUDENT_RUNS_DIR": str(root / "runs"),
        "STUDENT_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    with (root / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.student"],
            env=env,
            cwd=root,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("listening "), Path(root / "log").read_text()
            found, recipe = make_world(BlobStore(str(root / "blobs")), line.split()[1])
            yield asyncio.run(train(found, recipe))
        finally:
            process.terminate()
            process.wait(30)


class MadeUpConcepts(concepts_pb2_grpc.ConceptsServiceServicer):
    """Gives a photo the regions that were made up for it; others are damaged images."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.encoder_digest = "e" * 64
        self.largest_batch = 0

    async def EmbedRegions(
        self, request: concepts_pb2.EmbedRegionsRequest, context: Any
    ) -> concepts_pb2.EmbedRegionsResponse:
        assert request.encoder == ENCODER
        self.largest_batch = max(self.largest_batch, len(request.items))
        return concepts_pb2.EmbedRegionsResponse(
            results=[self._one(item) for item in request.items], encoder_digest=self.encoder_digest
        )

    async def ExportEncoder(
        self, request: concepts_pb2.ExportEncoderRequest, context: Any
    ) -> concepts_pb2.ExportEncoderResponse:
        digest = self.world.blobs.put("default", b"not a network")
        return concepts_pb2.ExportEncoderResponse(onnx=items_pb2.BlobRef(digest=digest))

    def _one(self, item: items_pb2.ImageInput) -> concepts_pb2.EmbedRegionsResult:
        digest = item.digest or hashlib.sha256(item.data).hexdigest()
        rows = self.world.regions.get(digest)
        if rows is None:
            error = InvalidInput("the image is damaged").to_status()
            return concepts_pb2.EmbedRegionsResult(item_id=item.item_id, error=error)
        regions = concepts_pb2.Regions(embeddings=to_message(rows), map=to_message(MAP))
        return concepts_pb2.EmbedRegionsResult(item_id=item.item_id, regions=regions)


@dataclass(frozen=True)
class Gateway:
    """A running StudentsService with one student, and what it stands on."""

    stub: students_pb2_grpc.StudentsServiceAsyncStub
    blob_stub: students_pb2_grpc.BlobServiceAsyncStub
    store: Store
    world: World
    concepts: MadeUpConcepts

    async def version(self, alias: str = "head") -> pb.StudentVersion:
        request = pb.GetStudentVersionRequest(name=f"{FRUIT}/versions/{alias}")
        return (await self.stub.GetStudentVersion(request)).version

    async def student(self) -> pb.Student:
        return (await self.stub.GetStudent(pb.GetStudentRequest(name=FRUIT))).student

    async def events(self) -> list[pb.StudentEvent]:
        request = pb.ListStudentEventsRequest(student=FRUIT)
        return list((await self.stub.ListStudentEvents(request)).events)


@pytest.fixture
async def gateway(world: World, store: Store) -> AsyncIterator[Gateway]:
    students.publish(store, "default", "fruit", world.made)
    concepts = MadeUpConcepts(world)
    async with serving(
        lambda server: concepts_pb2_grpc.add_ConceptsServiceServicer_to_server(concepts, server)
    ) as channel:
        peers = Peers.connect(GatewaySettings(student_address=world.address))
        peers = replace(peers, concepts=concepts_pb2_grpc.ConceptsServiceStub(channel))
        catalogue = load_catalogue()
        servicer = StudentsServicer(store, world.blobs, peers, catalogue, max_batch_items=100)

        def register(server: grpc.aio.Server) -> None:
            students_pb2_grpc.add_StudentsServiceServicer_to_server(servicer, server)
            students_pb2_grpc.add_BlobServiceServicer_to_server(BlobServicer(world.blobs), server)

        async with serving(register) as own:
            stub = students_pb2_grpc.StudentsServiceStub(own)
            blob_stub = students_pb2_grpc.BlobServiceStub(own)
            yield Gateway(stub, blob_stub, store, world, concepts)
        await peers.close()


async def refused(answer: Awaitable[object]) -> StillhouseError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await answer
    return to_error(caught.value)


def inline(world: World, count: int) -> list[items_pb2.ImageInput]:
    chosen = list(world.photos.items())[:count]
    return [items_pb2.ImageInput(item_id=name, data=data) for name, data in chosen]


def up(
    label: str = "Pink-Lady", concept: str = "long neck", factor: float = 2.0
) -> pb.TuneStudentRequest:
    edit = student_pb2.ConceptEdit(
        label=label, concept=concept, direction=student_pb2.DIRECTION_UP, factor=factor
    )
    return pb.TuneStudentRequest(student=FRUIT, edits=[edit])


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


async def test_examples_are_the_strongest_images(gateway: Gateway) -> None:
    request = pb.ListConceptExamplesRequest(student=FRUIT, concepts=CONCEPTS[:2], page_size=5)
    examples = (await gateway.stub.ListConceptExamples(request)).examples
    assert [one.concept for one in examples] == [CONCEPTS[0]] * 5 + [CONCEPTS[1]] * 5
    version = await gateway.version()
    file = StudentFiles(gateway.world.blobs).load(
        "default", version.student_ref.weights_digest, version.student_ref.card_digest
    )
    rows = list(gateway.world.regions.values())
    offsets = np.arange(N + 1) * (1 + SEGMENTS)
    truth = presence(
        np.concatenate(rows), offsets, file.text, file.image_mean, file.text_mean
    ).values
    for column in (0, 1):
        shown = [one.presence for one in examples if one.concept == CONCEPTS[column]]
        assert shown == pytest.approx(np.sort(truth[:, column])[::-1][:5], abs=1e-6)
    for one in examples:
        assert hashlib.sha256(gateway.world.photos[one.item.item_id]).hexdigest() == one.item.digest
        assert 0 <= one.box.left < one.box.right <= 1


async def test_examples_of_one_class(gateway: Gateway) -> None:
    request = pb.ListConceptExamplesRequest(
        student=FRUIT, concepts=["red skin"], label="Pear", page_size=100
    )
    examples = (await gateway.stub.ListConceptExamples(request)).examples
    assert examples
    assert {one.item.item_id.split("/")[0] for one in examples} == {"Pear"}


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
        stub.ListConceptExamples(pb.ListConceptExamplesRequest(student=FRUIT, concepts=["x"])),
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
