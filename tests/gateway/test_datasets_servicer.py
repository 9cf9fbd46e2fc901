"""DatasetService over a real gRPC server: create, upload, list, fail, resume after a restart."""

from __future__ import annotations

import asyncio
import io
import uuid
import zipfile
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import grpc.aio
import pytest
from stillhouse.common.v1 import items_pb2
from stillhouse.gateway.v1 import datasets_pb2 as pb
from stillhouse.gateway.v1 import datasets_pb2_grpc

from services.common.blobs import BlobStore
from services.common.channels import to_error
from services.common.errors import (
    AlreadyExists,
    InvalidInput,
    NotFound,
    Precondition,
    StillhouseError,
)
from services.gateway.datasets import records
from services.gateway.datasets.readers import Reading, UriPolicy
from services.gateway.datasets.runner import IngestRunner
from services.gateway.datasets_servicer import DatasetServicer
from services.gateway.store import Store
from tests.gateway.conftest import make_photo, serving

NAME = "projects/p/datasets/flowers"


@dataclass(frozen=True)
class Gateway:
    """A running DatasetService and what it stands on."""

    stub: datasets_pb2_grpc.DatasetServiceAsyncStub
    runner: IngestRunner
    store: Store
    reading: Reading

    async def ready(self, name: str = NAME) -> pb.Dataset:
        """Wait until a dataset is READY or FAILED."""
        while True:
            response = await self.stub.GetDataset(pb.GetDatasetRequest(name=name))
            if response.dataset.state != pb.DATASET_STATE_CREATING:
                return response.dataset
            await asyncio.sleep(0.02)


@asynccontextmanager
async def running(store: Store, reading: Reading) -> AsyncIterator[Gateway]:
    runner = IngestRunner(store, reading)
    servicer = DatasetServicer(store, reading, runner, max_archive_bytes=1 << 20)

    def register(server: grpc.aio.Server) -> None:
        datasets_pb2_grpc.add_DatasetServiceServicer_to_server(servicer, server)

    async with serving(register) as channel:
        yield Gateway(datasets_pb2_grpc.DatasetServiceStub(channel), runner, store, reading)
        await runner.stop()


@pytest.fixture
async def gateway(store: Store, reading: Reading) -> AsyncIterator[Gateway]:
    async with running(store, reading) as found:
        yield found


@pytest.fixture
async def any_gateway(any_store: Store, reading: Reading) -> AsyncIterator[Gateway]:
    """The same on SQLite and on PostgreSQL."""
    async with running(any_store, reading) as found:
        yield found


async def refused(answer: Awaitable[object]) -> StillhouseError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await answer
    return to_error(caught.value)


def photos(count: int = 12) -> dict[str, bytes]:
    return {f"{'ab'[n % 2]}/{n:03d}.jpg": make_photo(n) for n in range(count)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, data in photos().items():
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (tmp_path / "set" / "a" / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    return tmp_path / "set"


def request_for(folder: Path | str, **fields: object) -> pb.CreateDatasetRequest:
    request = pb.CreateDatasetRequest(project="p", dataset_id="flowers", uri=str(folder))
    for key, value in fields.items():
        setattr(request, key, value)
    return request


async def test_a_folder_becomes_a_dataset(any_gateway: Gateway, folder: Path) -> None:
    created = (await any_gateway.stub.CreateDataset(request_for(folder))).dataset
    assert created.name == NAME
    assert created.create_time.seconds > 0
    found = await any_gateway.ready()
    assert found.state == pb.DATASET_STATE_READY, found.error
    assert list(found.classes) == ["a", "b"]
    assert found.item_count == 12
    assert sum(found.split_counts.values()) == 12
    assert [one.path for one in found.rejected] == ["a/broken.jpg"]
    assert found.rejected_count == 1
    assert any_gateway.reading.blobs.exists("p", found.manifest.digest)


async def test_items_are_listed_page_by_page(gateway: Gateway, folder: Path) -> None:
    await gateway.stub.CreateDataset(request_for(folder))
    await gateway.ready()
    request, seen = pb.ListDatasetItemsRequest(dataset=NAME, page_size=5), list[pb.DatasetItem]()
    while True:
        response = await gateway.stub.ListDatasetItems(request)
        seen += response.items
        request.page_token = response.next_page_token
        if not request.page_token:
            break
    assert [item.item_id for item in seen] == sorted(photos())
    assert {item.labels[0] for item in seen if item.item_id[0] == "a"} == {"a"}
    only = pb.ListDatasetItemsRequest(dataset=NAME, split="test")
    tests = (await gateway.stub.ListDatasetItems(only)).items
    assert [item.item_id for item in tests] == [i.item_id for i in seen if i.split == "test"]
    assert tests


@pytest.mark.parametrize("split", ["", "odd"])
async def test_what_cannot_be_listed(gateway: Gateway, folder: Path, split: str) -> None:
    (folder / "a" / "broken.jpg").unlink()
    gateway.runner.launch = lambda pk: None
    await gateway.stub.CreateDataset(request_for(folder))
    error = await refused(
        gateway.stub.ListDatasetItems(pb.ListDatasetItemsRequest(dataset=NAME, split=split))
    )
    assert isinstance(error, InvalidInput if split else Precondition)


async def test_datasets_are_listed_newest_first(any_gateway: Gateway, folder: Path) -> None:
    any_gateway.runner.launch = lambda pk: None
    for name in ("one", "two", "three"):
        await any_gateway.stub.CreateDataset(request_for(folder, dataset_id=name))
    await any_gateway.stub.CreateDataset(request_for(folder, project="other"))
    request, seen = pb.ListDatasetsRequest(project="p", page_size=2), []
    for _ in range(2):
        response = await any_gateway.stub.ListDatasets(request)
        seen += [one.name.rsplit("/", 1)[1] for one in response.datasets]
        request.page_token = response.next_page_token
    assert seen == ["three", "two", "one"]
    assert request.page_token == ""
    request.page_size = -1
    assert isinstance(await refused(any_gateway.stub.ListDatasets(request)), InvalidInput)


async def test_a_repeated_request_makes_one_dataset(any_gateway: Gateway, folder: Path) -> None:
    request = request_for(folder, request_id=str(uuid.uuid4()))
    answers = await asyncio.gather(*(any_gateway.stub.CreateDataset(request) for _ in range(4)))
    assert {one.dataset.name for one in answers} == {NAME}
    await any_gateway.ready()
    again = await any_gateway.stub.CreateDataset(request)
    assert again.dataset.state == pb.DATASET_STATE_READY
    request.max_items = 3
    assert isinstance(await refused(any_gateway.stub.CreateDataset(request)), InvalidInput)
    request.request_id = ""
    assert isinstance(await refused(any_gateway.stub.CreateDataset(request)), AlreadyExists)


async def test_a_failed_dataset_says_why_and_can_be_made_again(
    gateway: Gateway, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    await gateway.stub.CreateDataset(request_for(tmp_path / "empty"))
    failed = await gateway.ready()
    assert failed.state == pb.DATASET_STATE_FAILED
    assert failed.error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert "no usable image" in failed.error.message
    await gateway.stub.CreateDataset(request_for(folder))
    again = await gateway.ready()
    assert again.state == pb.DATASET_STATE_READY
    assert not again.HasField("error")


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"project": "P"}, InvalidInput),
        ({"dataset_id": "a b"}, InvalidInput),
        ({"dataset_id": ""}, InvalidInput),
        ({"uri": ""}, InvalidInput),
        ({"uri": "/nowhere"}, NotFound),
        ({"uri": "builtin:nothing"}, NotFound),
        ({"uri": "builtin:fruit-fine?max=x"}, InvalidInput),
        ({"uri": "zip://x::file:///x"}, InvalidInput),
        ({"test_share": 1.0}, InvalidInput),
        ({"test_share": -0.1}, InvalidInput),
        ({"test_share": float("nan")}, InvalidInput),
        ({"val_share": 0.6, "test_share": 0.4}, InvalidInput),
        ({"max_items": -1}, InvalidInput),
        ({"request_id": "a b"}, InvalidInput),
    ],
)
async def test_bad_requests(
    gateway: Gateway, folder: Path, fields: dict[str, object], error: type[StillhouseError]
) -> None:
    answer = gateway.stub.CreateDataset(request_for(folder, **fields))
    assert type(await refused(answer)) is error
    listed = await gateway.stub.ListDatasets(pb.ListDatasetsRequest(project="p"))
    assert not listed.datasets


async def test_a_gateway_for_others_reads_no_files(
    store: Store, reading: Reading, folder: Path
) -> None:
    shut = replace(reading, policy=UriPolicy.for_host("0.0.0.0"))
    async with running(store, shut) as gateway:
        error = await refused(gateway.stub.CreateDataset(request_for(folder)))
    assert isinstance(error, Precondition)
    assert "upload an archive" in error.message


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def chunks(data: bytes, size: int = 1000, project: str = "p") -> Iterator[pb.UploadArchiveRequest]:
    for at in range(0, max(len(data), 1), size):
        yield pb.UploadArchiveRequest(project="" if at else project, chunk=data[at : at + size])


async def test_an_uploaded_archive_becomes_a_dataset(gateway: Gateway) -> None:
    data = zipped({f"blümchen/{name}": photo for name, photo in photos().items()})
    archive = (await gateway.stub.UploadArchive(chunks(data))).archive
    assert archive.size_bytes == len(data)
    request = pb.CreateDatasetRequest(project="p", dataset_id="flowers", archive=archive)
    await gateway.stub.CreateDataset(request)
    found = await gateway.ready()
    assert found.state == pb.DATASET_STATE_READY, found.error
    assert found.item_count == 12
    elsewhere = pb.CreateDatasetRequest(project="q", dataset_id="flowers", archive=archive)
    assert isinstance(await refused(gateway.stub.CreateDataset(elsewhere)), NotFound)


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        (list(chunks(b"")), "empty"),
        (list(chunks(b"\x00\x01neither")), "neither an archive nor text"),
        (list(chunks(b"PK\x03\x04" * 10, project="")), "project"),
        (list(chunks(b"PK\x03\x04" * 300_000, size=1 << 18)), "over the limit"),
        (list(chunks(b"PK\x03\x04" * 300_000, size=(1 << 20) + 1)), "chunk"),
        ([*chunks(b"PK\x03\x04"), *chunks(b"x", project="q")], "changed"),
    ],
)
async def test_bad_uploads(
    gateway: Gateway, messages: list[pb.UploadArchiveRequest], says: str
) -> None:
    error = await refused(gateway.stub.UploadArchive(iter(messages)))
    assert isinstance(error, InvalidInput)
    assert says in error.message


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "0" * 64])
async def test_an_archive_that_was_not_uploaded(gateway: Gateway, digest: str) -> None:
    archive = items_pb2.BlobRef(digest=digest)
    request = pb.CreateDatasetRequest(project="p", dataset_id="flowers", archive=archive)
    error = await refused(gateway.stub.CreateDataset(request))
    assert isinstance(error, NotFound if digest == "0" * 64 else InvalidInput)


async def test_names_of_other_forms(gateway: Gateway) -> None:
    for name in ("", "flowers", "projects/p/datasets/", "projects/p/students/flowers"):
        error = await refused(gateway.stub.GetDataset(pb.GetDatasetRequest(name=name)))
        assert isinstance(error, InvalidInput)
    missing = await refused(gateway.stub.GetDataset(pb.GetDatasetRequest(name=NAME)))
    assert isinstance(missing, NotFound)


async def test_an_unfinished_ingest_is_taken_up_again(
    gateway: Gateway, folder: Path, blobs: BlobStore
) -> None:
    gateway.runner.launch = lambda pk: None  # a gateway that dies right after it has answered
    await gateway.stub.CreateDataset(request_for(folder))
    later = IngestRunner(gateway.store, gateway.reading)
    await later.resume()
    found = await gateway.ready()
    assert found.state == pb.DATASET_STATE_READY
    row = records.get(gateway.store, "p", "flowers")
    assert row.manifest_digest == found.manifest.digest
    await later.run_ingest(row.pk)  # a second run changes nothing
    assert await gateway.ready() == found
    await later.stop()


async def test_an_interrupted_ingest_stays_unfinished(gateway: Gateway, folder: Path) -> None:
    gateway.runner.launch = lambda pk: None
    await gateway.stub.CreateDataset(request_for(folder))
    (pk,) = records.unfinished(gateway.store)
    gateway.runner.interrupt()
    await gateway.runner.run_ingest(pk)
    assert records.unfinished(gateway.store) == [pk]
