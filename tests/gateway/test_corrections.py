"""Corrected labels: a dataset that differs in them alone, and what is refused."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from stillhouse.gateway.v1 import datasets_pb2 as pb
from stillhouse.gateway.v1 import datasets_pb2_grpc

from services.common.errors import AlreadyExists, InvalidInput, NotFound, Precondition
from services.common.manifest import Item, Manifest
from services.gateway.datasets import records
from services.gateway.datasets.corrections import corrected
from services.gateway.datasets.ingest import Ingested
from services.gateway.datasets.readers import Reading
from services.gateway.datasets.runner import IngestRunner
from services.gateway.datasets_servicer import DatasetServicer
from services.gateway.store import Store
from tests.gateway.parts import serving
from tests.gateway.student_world import refused

NAME = "projects/p/datasets/flowers"
CLASSES = ("daisy", "rose", "tulip")
MANIFEST = Manifest(
    CLASSES,
    False,
    tuple(
        Item(f"{CLASSES[n % 3]}/{n}.jpg", f"{n:064x}", ("train", "val", "test")[n % 3], (n % 3,))
        for n in range(9)
    ),
)


@dataclass(frozen=True)
class Gateway:
    """A DatasetService with one READY dataset of nine flowers, and one that is being read."""

    stub: datasets_pb2_grpc.DatasetServiceAsyncStub
    store: Store
    reading: Reading

    async def correct(self, *corrections: tuple[str, list[str]], **fields: str) -> pb.Dataset:
        return (await self.stub.CorrectLabels(request_for(*corrections, **fields))).dataset

    async def items(self, dataset_id: str) -> list[pb.DatasetItem]:
        request = pb.ListDatasetItemsRequest(dataset=f"projects/p/datasets/{dataset_id}")
        return list((await self.stub.ListDatasetItems(request)).items)


def request_for(*corrections: tuple[str, list[str]], **fields: str) -> pb.CorrectLabelsRequest:
    messages = [pb.LabelCorrection(item_id=item, labels=labels) for item, labels in corrections]
    base = {"dataset": NAME, "dataset_id": "flowers-2", "corrections": messages}
    return pb.CorrectLabelsRequest(**base | fields)


@pytest.fixture
async def gateway(any_store: Store, reading: Reading) -> AsyncIterator[Gateway]:
    for name in ("flowers", "slow"):
        create = pb.CreateDatasetRequest(project="p", dataset_id=name, uri="file:///x")
        row, _ = records.create(any_store, create)
        if name == "flowers":
            data = MANIFEST.to_bytes()
            digest = reading.blobs.put("p", data)
            found = Ingested(MANIFEST, digest, len(data), (), 1, (), 0)
            records.finish(any_store, row.pk, found)
    servicer = DatasetServicer(
        any_store, reading, IngestRunner(any_store, reading), max_archive_bytes=1 << 20
    )
    async with serving(
        lambda server: datasets_pb2_grpc.add_DatasetServiceServicer_to_server(servicer, server)
    ) as channel:
        yield Gateway(datasets_pb2_grpc.DatasetServiceStub(channel), any_store, reading)


async def test_only_the_labels_differ(gateway: Gateway) -> None:
    before = (await gateway.stub.GetDataset(pb.GetDatasetRequest(name=NAME))).dataset
    made = await gateway.correct(("daisy/0.jpg", ["rose"]), ("tulip/2.jpg", ["daisy"]))
    assert made.name == "projects/p/datasets/flowers-2"
    assert made.state == pb.DATASET_STATE_READY
    assert made.corrected_from == NAME
    assert made.manifest.digest != before.manifest.digest
    data = gateway.reading.blobs.get("p", made.manifest.digest)
    assert made.manifest.size_bytes == len(data)
    labels = [item.labels for item in Manifest.from_bytes(data).items]
    assert labels == [(1,), (1,), (0,), *(item.labels for item in MANIFEST.items[3:])]
    old, new = await gateway.items("flowers"), await gateway.items("flowers-2")
    assert [(one.item_id, one.digest, one.split) for one in old] == [
        (one.item_id, one.digest, one.split) for one in new
    ]
    assert [list(one.labels) for one in old] == [[CLASSES[n % 3]] for n in range(9)]
    for field in ("classes", "split_counts", "item_count", "rejected_count", "multi_label"):
        assert getattr(made, field) == getattr(before, field)
    again = (await gateway.stub.GetDataset(pb.GetDatasetRequest(name=made.name))).dataset
    assert again == made
    assert (await gateway.stub.GetDataset(pb.GetDatasetRequest(name=NAME))).dataset == before


async def test_a_repeated_call_makes_one_dataset(gateway: Gateway) -> None:
    key = str(uuid.uuid4())
    first = await gateway.correct(("daisy/0.jpg", ["rose"]), request_id=key)
    assert await gateway.correct(("daisy/0.jpg", ["rose"]), request_id=key) == first
    error = await refused(gateway.correct(("daisy/0.jpg", ["tulip"]), request_id=key))
    assert isinstance(error, InvalidInput)
    assert isinstance(await refused(gateway.correct(("daisy/0.jpg", ["rose"]))), AlreadyExists)


async def test_corrections_of_corrections(gateway: Gateway) -> None:
    first = await gateway.correct(("daisy/0.jpg", ["rose"]))
    back = await gateway.correct(
        ("daisy/0.jpg", ["daisy"]), dataset=first.name, dataset_id="flowers-3"
    )
    assert back.corrected_from == first.name
    before = (await gateway.stub.GetDataset(pb.GetDatasetRequest(name=NAME))).dataset
    assert back.manifest == before.manifest


async def test_every_wrong_correction_is_named(gateway: Gateway) -> None:
    request = request_for(
        ("daisy/0.jpg", ["lily"]),
        ("none.jpg", ["rose"]),
        ("rose/1.jpg", ["tulip"]),
        ("rose/1.jpg", ["daisy"]),
        ("tulip/2.jpg", []),
        ("daisy/3.jpg", ["rose", "tulip"]),
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gateway.stub.CorrectLabels(request)
    status = rpc_status.from_call(caught.value)
    bad = error_details_pb2.BadRequest()
    assert status is not None
    assert status.details[1].Unpack(bad)
    found = {one.field: one.description for one in bad.field_violations}
    assert list(found) == [
        "corrections[0].labels", "corrections[1].item_id", "corrections[3].item_id",
        "corrections[4].labels", "corrections[5].labels",
    ]  # fmt: skip
    assert "'lily'" in found["corrections[0].labels"]
    assert "'none.jpg'" in found["corrections[1].item_id"]
    missing = pb.GetDatasetRequest(name="projects/p/datasets/flowers-2")
    assert isinstance(await refused(gateway.stub.GetDataset(missing)), NotFound)


async def test_what_cannot_be_corrected(gateway: Gateway) -> None:
    one = ("daisy/0.jpg", ["rose"])
    for answer, kind in (
        (gateway.correct(one, dataset="projects/p/datasets/none"), NotFound),
        (gateway.correct(one, dataset="projects/other/datasets/flowers"), NotFound),
        (gateway.correct(one, dataset="projects/p/datasets/slow"), Precondition),
        (gateway.correct(one, dataset_id="flowers"), AlreadyExists),
        (gateway.correct(one, dataset_id="Not An Id"), InvalidInput),
        (gateway.correct(one, dataset="flowers"), InvalidInput),
        (gateway.correct(), InvalidInput),
        (gateway.correct(*[one] * 1001), InvalidInput),
    ):
        assert isinstance(await refused(answer), kind)


def test_several_labels_where_a_dataset_has_them() -> None:
    several = Manifest(CLASSES, True, MANIFEST.items)
    messages = [pb.LabelCorrection(item_id="daisy/0.jpg", labels=["tulip", "daisy", "tulip"])]
    assert corrected(several, messages).items[0].labels == (0, 2)
    assert corrected(several, messages).items[1:] == several.items[1:]
