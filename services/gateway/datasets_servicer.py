"""DatasetService: create, upload, correct, get and list datasets."""

from __future__ import annotations

import asyncio
import functools
import tempfile
from collections.abc import AsyncIterator
from typing import BinaryIO, cast

from stillhouse.common.v1 import items_pb2
from stillhouse.gateway.v1 import datasets_pb2 as pb
from stillhouse.gateway.v1 import datasets_pb2_grpc

from services.common import names
from services.common.blobs import check_digest
from services.common.errors import InvalidInput, NotFound, Precondition
from services.common.interceptors import Context
from services.common.manifest import SPLITS, Manifest
from services.common.texts import TextManifest, TextRecord, pack_records, unpack_records
from services.gateway.datasets import corrections, records
from services.gateway.datasets.readers import Reading, check_uri
from services.gateway.datasets.runner import IngestRunner, options_of
from services.gateway.datasets.text_files import name_of_kind
from services.gateway.datasets.text_sources import is_archive
from services.gateway.datasets.trees import archive_tree
from services.gateway.gathering import Crowd, Gathered
from services.gateway.paging import Page, fitting, page
from services.gateway.projects.rows import check_stays
from services.gateway.store import DatasetRow, Store

MAX_CHUNK_BYTES = 1 << 20


class DatasetServicer(datasets_pb2_grpc.DatasetServiceServicer):
    """Serves DatasetService over the tables and the blob store; `runner` does the reading."""

    def __init__(
        self,
        store: Store,
        reading: Reading,
        runner: IngestRunner,
        *,
        max_archive_bytes: int,
        crowd: Crowd | None = None,
    ) -> None:
        self._store = store
        self._reading = reading
        self._runner = runner
        self._max_archive_bytes = max_archive_bytes
        self._rows = Gathered(functools.partial(records.get_many, store), crowd)
        self._manifest = functools.lru_cache(maxsize=4)(self._read_manifest)

    async def CreateDataset(
        self, request: pb.CreateDatasetRequest, context: Context
    ) -> pb.CreateDatasetResponse:
        names.check_id(request.project, field="project")
        names.check_id(request.dataset_id, field="dataset_id")
        options_of(request)
        await asyncio.to_thread(self._check_source, request)
        row, is_new = await asyncio.to_thread(records.create, self._store, request)
        if is_new:
            self._runner.launch(row.pk)
        return pb.CreateDatasetResponse(dataset=records.to_message(row))

    async def UploadArchive(
        self, request_iterator: AsyncIterator[pb.UploadArchiveRequest], context: Context
    ) -> pb.UploadArchiveResponse:
        with tempfile.TemporaryFile() as raw:
            file = cast("BinaryIO", raw)
            project = await self._receive(request_iterator, file)
            digest, size = await asyncio.to_thread(self._keep, project, file)
        blob = items_pb2.BlobRef(digest=digest, size_bytes=size)
        return pb.UploadArchiveResponse(archive=blob)

    async def CorrectLabels(
        self, request: pb.CorrectLabelsRequest, context: Context
    ) -> pb.CorrectLabelsResponse:
        project, dataset_id = names.parse(request.dataset, "datasets", field="dataset")
        names.check_id(request.dataset_id, field="dataset_id")

        def work() -> pb.Dataset:
            source = records.get(self._store, project, dataset_id)
            return records.to_message(
                corrections.correct(self._store, self._reading.blobs, source, request)
            )

        return pb.CorrectLabelsResponse(dataset=await asyncio.to_thread(work))

    async def GetDataset(
        self, request: pb.GetDatasetRequest, context: Context
    ) -> pb.GetDatasetResponse:
        project, dataset_id = names.parse(request.name, "datasets")
        row = await self._rows.get((project, dataset_id))
        if row is None:
            raise records.missing(project, dataset_id)
        return pb.GetDatasetResponse(dataset=records.to_message(row))

    async def ListDatasets(
        self, request: pb.ListDatasetsRequest, context: Context
    ) -> pb.ListDatasetsResponse:
        names.check_id(request.project, field="project")
        wanted = page(request.page_size, request.page_token, "datasets", request.project)
        rows, token = await asyncio.to_thread(
            records.list_page, self._store, request.project, wanted
        )
        found = [records.to_message(row) for row in rows]
        return pb.ListDatasetsResponse(datasets=found, next_page_token=token)

    async def ListDatasetItems(
        self, request: pb.ListDatasetItemsRequest, context: Context
    ) -> pb.ListDatasetItemsResponse:
        return await asyncio.to_thread(self._items, request)

    def _check_source(self, request: pb.CreateDatasetRequest) -> None:
        kind = request.WhichOneof("source")
        if kind is None:
            raise InvalidInput("source: one of uri, archive is required", field="source")
        if kind == "uri":
            check_uri(request.uri, self._reading)
            return
        digest = check_digest(request.archive.digest, field="archive.digest")
        if not self._reading.blobs.exists(request.project, digest):
            raise NotFound(f"no archive {digest} was uploaded to this project", resource=digest)

    async def _receive(
        self, requests: AsyncIterator[pb.UploadArchiveRequest], file: BinaryIO
    ) -> str:
        """Write the chunks to `file`; return the project."""
        project, size = "", 0
        async for message in requests:
            project = project or names.check_id(message.project, field="project")
            if message.project not in ("", project):
                raise InvalidInput("project: changed within the stream", field="project")
            size += len(message.chunk)
            if len(message.chunk) > MAX_CHUNK_BYTES:
                raise InvalidInput(f"chunk: over {MAX_CHUNK_BYTES:,} bytes", field="chunk")
            if size > self._max_archive_bytes:
                raise InvalidInput(
                    f"the archive is over the limit of {self._max_archive_bytes:,} bytes",
                    field="chunk",
                )
            await asyncio.to_thread(file.write, message.chunk)
        if not size:
            raise InvalidInput("chunk: the archive is empty", field="chunk")
        return project

    def _keep(self, project: str, file: BinaryIO) -> tuple[str, int]:
        """Store an archive, or one file of texts, after a look at what it is.

        Raises Precondition where its project is being deleted: it has no row that would be refused.
        """
        file.seek(0)
        if is_archive(cast("BinaryIO", _Kept(file))):
            file.seek(0)
            archive_tree(lambda: cast("BinaryIO", _Kept(file)))
        else:
            file.seek(0)
            name_of_kind(file)
        file.seek(0)
        with self._store.read() as session:
            check_stays(session, project)
        return self._reading.blobs.put_file(project, file)

    def _items(self, request: pb.ListDatasetItemsRequest) -> pb.ListDatasetItemsResponse:
        project, dataset_id = names.parse(request.dataset, "datasets", field="dataset")
        if request.split not in ("", *SPLITS):
            raise InvalidInput(f"split: {request.split[:20]!r} is none of {SPLITS}", field="split")
        wanted = page(request.page_size, request.page_token, request.dataset, request.split)
        row = records.get(self._store, project, dataset_id)
        if row.state != "READY":
            raise Precondition(f"{records.name_of(row)} is {row.state.lower()}, not ready")
        if records.holds_texts(row):
            return self._listed_texts(row, request.split, wanted)
        return self._listed_images(row, request.split, wanted)

    def _listed_images(
        self, row: DatasetRow, split: str, wanted: Page
    ) -> pb.ListDatasetItemsResponse:
        manifest = self._manifest(row.project, row.manifest_digest)
        found = []
        for at in range(wanted.position, len(manifest.items)):
            item = manifest.items[at]
            if split in ("", item.split):
                found.append((at + 1, item))
            if len(found) > wanted.size:
                break
        kept, token = wanted.cut([item for _, item in found], [at for at, _ in found])
        messages = [
            pb.DatasetItem(
                item_id=item.item_id,
                digest=item.digest,
                split=item.split,
                labels=[manifest.classes[label] for label in item.labels],
            )
            for item in kept
        ]
        return pb.ListDatasetItemsResponse(items=messages, next_page_token=token)

    def _listed_texts(
        self, row: DatasetRow, split: str, wanted: Page
    ) -> pb.ListDatasetItemsResponse:
        blobs = self._reading.blobs
        manifest = TextManifest.from_bytes(blobs.get(row.project, row.manifest_digest))
        found: list[tuple[int, TextRecord]] = []
        lengths: list[int] = []
        start = 0
        for shard in manifest.shards:
            end, is_full = start + shard.count, min(wanted.size, fitting(lengths)) < len(found)
            if split in ("", shard.split) and end > wanted.position and not is_full:
                read = enumerate(unpack_records(blobs.get(row.project, shard.digest)), start=start)
                more = [(at + 1, record) for at, record in read if at >= wanted.position]
                found += more
                lengths += [len(pack_records([record])) for _, record in more]
            start = end
        found = found[: wanted.size + 1]
        kept, token = wanted.cut([record for _, record in found], [at for at, _ in found], lengths)
        return pb.ListDatasetItemsResponse(
            items=[text_item(record) for record in kept], next_page_token=token
        )

    def _read_manifest(self, project: str, digest: str) -> Manifest:
        return Manifest.from_bytes(self._reading.blobs.get(project, digest))


def text_item(record: TextRecord) -> pb.DatasetItem:
    """Return the message of a text record."""
    return pb.DatasetItem(
        item_id=record.record_id,
        digest=record.digest,
        split=record.split,
        text=pb.TextRecord(
            text=record.text,
            prompt=record.prompt,
            answer=record.answer,
            reference=record.reference,
            choices=record.choices,
            choice_index=record.choice_index,
            group=record.group,
        ),
    )


class _Kept:
    """A file that a `with` block does not close."""

    def __init__(self, file: BinaryIO) -> None:
        self.read = file.read

    def __enter__(self) -> _Kept:
        return self

    def __exit__(self, *_: object) -> None:
        return None
