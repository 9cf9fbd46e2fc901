"""StudentsService with a real StudentService in a process of its own.

The student is trained by that service on made-up regions, whose truth is known; only
ConceptsService is a stand-in, which gives a photo the regions that were made up for it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from stillhouse.common.v1 import info_pb2, info_pb2_grpc, items_pb2
from stillhouse.concepts.v1 import concepts_pb2, concepts_pb2_grpc
from stillhouse.gateway.v1 import students_pb2 as pb
from stillhouse.gateway.v1 import students_pb2_grpc
from stillhouse.student.v1 import student_pb2, student_pb2_grpc

from services.common.blobs import BlobStore
from services.common.catalogue import load_catalogue
from services.common.channels import to_error
from services.common.errors import InvalidInput, StillhouseError
from services.common.manifest import Item, Manifest
from services.common.shards import SHARD_ITEMS, pack_regions, pack_rows
from services.common.tensors import Array, pack_arrays, to_message
from services.gateway import students
from services.gateway.blob_servicer import BlobServicer
from services.gateway.peers import Peers
from services.gateway.settings import GatewaySettings
from services.gateway.store import Store
from services.gateway.students_servicer import StudentsServicer
from tests.gateway.parts import make_photo, serving

FRUIT = "projects/default/students/fruit"
ENCODER = "projects/default/encoders/effl2-minilm"
CLASSES = ("Granny-Smith", "Pear", "Pink-Lady")
CONCEPTS = ("red skin", "green skin", "long neck", '$stem "x"', "leaf", "basket")
N, WIDTH, SEGMENTS = 120, 16, 3
MAP = np.array([[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 3, 3], [3, 3, 3, 3]], np.uint8)


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


@dataclass(frozen=True)
class World:
    """Made-up data in a blob store, and the address of the StudentService on it."""

    blobs: BlobStore
    address: str
    made: students.Made
    regions: dict[str, Array]
    labels: dict[str, int]
    photos: dict[str, bytes]


def text_of(text: str) -> Array:
    """A word's made-up embedding: any direction, the same each time."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    row = np.random.default_rng(seed).normal(size=WIDTH)
    return np.asarray(row / np.linalg.norm(row), "<f2")


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
        self.asked_texts: list[str] = []

    async def EmbedRegions(
        self, request: concepts_pb2.EmbedRegionsRequest, context: Any
    ) -> concepts_pb2.EmbedRegionsResponse:
        assert request.encoder == ENCODER
        self.largest_batch = max(self.largest_batch, len(request.items))
        return concepts_pb2.EmbedRegionsResponse(
            results=[self._one(item) for item in request.items], encoder_digest=self.encoder_digest
        )

    async def EmbedTexts(
        self, request: concepts_pb2.EmbedTextsRequest, context: Any
    ) -> concepts_pb2.EmbedTextsResponse:
        assert request.encoder == ENCODER
        self.asked_texts += request.texts
        rows = np.stack([text_of(text) for text in request.texts])
        return concepts_pb2.EmbedTextsResponse(
            embeddings=to_message(rows), encoder_digest=self.encoder_digest
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


class Limited(info_pb2_grpc.InfoServiceServicer):
    """Publishes how many items a call may have."""

    def __init__(self, max_batch_items: int) -> None:
        self.limits = info_pb2.Limits(max_batch_items=max_batch_items)

    async def GetInfo(
        self, request: info_pb2.GetInfoRequest, context: Any
    ) -> info_pb2.GetInfoResponse:
        return info_pb2.GetInfoResponse(limits=self.limits)


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

    def register_concepts(server: grpc.aio.Server) -> None:
        concepts_pb2_grpc.add_ConceptsServiceServicer_to_server(concepts, server)
        info_pb2_grpc.add_InfoServiceServicer_to_server(Limited(32), server)

    async with serving(register_concepts) as channel:
        peers = Peers.connect(GatewaySettings(student_address=world.address))
        teacher, unused, student = peers.channels
        await unused.close()
        peers = replace(
            peers,
            concepts=concepts_pb2_grpc.ConceptsServiceStub(channel),
            channels=(teacher, channel, student),
        )
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
