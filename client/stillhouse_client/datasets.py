"""Datasets: create from a URI or a local path, correct, wait, list."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import grpc.aio
from stillhouse.common.v1 import items_pb2
from stillhouse.gateway.v1 import datasets_pb2 as pb
from stillhouse.gateway.v1 import datasets_pb2_grpc

from stillhouse_client import names
from stillhouse_client import upload as uploads
from stillhouse_client.errors import DeadlinePassed, from_call, from_status
from stillhouse_client.pages import PAGE_SIZE, collect
from stillhouse_client.transport import Transport, new_request_id

_POLL_S = 0.2
_UPLOAD_S = 3600.0


class AsyncDatasets:
    """What a client can do with datasets."""

    def __init__(self, transport: Transport, project: str) -> None:
        self._transport = transport
        self._project = project
        self._stub = datasets_pb2_grpc.DatasetServiceStub(transport.channel)

    async def create(
        self,
        dataset_id: str,
        *,
        uri: str = "",
        archive: items_pb2.BlobRef | None = None,
        test_share: float = 0.0,
        val_share: float = 0.0,
        max_items: int = 0,
        kind: pb.DatasetKind.ValueType = pb.DATASET_KIND_UNSPECIFIED,
        request_id: str = "",
    ) -> pb.Dataset:
        """Create a dataset from a URI or an uploaded archive; it is usually still CREATING.

        `kind` says whether the source holds images, which is the default, or texts.
        """
        request = pb.CreateDatasetRequest(
            project=self._project,
            dataset_id=dataset_id,
            test_share=test_share,
            val_share=val_share,
            max_items=max_items,
            kind=kind,
            request_id=request_id or new_request_id(),
        )
        if archive is not None:
            request.archive.CopyFrom(archive)
        else:
            request.uri = uri
        return (await self._transport.call(self._stub.CreateDataset, request)).dataset

    async def correct(
        self,
        name: str,
        dataset_id: str,
        corrections: Mapping[str, Sequence[str]],
        *,
        request_id: str = "",
    ) -> pb.Dataset:
        """Make a dataset `dataset_id` that differs in the labels of some items, by item id."""
        request = pb.CorrectLabelsRequest(
            dataset=self.full(name),
            dataset_id=dataset_id,
            corrections=[
                pb.LabelCorrection(item_id=item, labels=labels)
                for item, labels in corrections.items()
            ],
            request_id=request_id or new_request_id(),
        )
        return (await self._transport.call(self._stub.CorrectLabels, request)).dataset

    async def upload(
        self, path: Path, *, progress: uploads.Progress | None = None
    ) -> items_pb2.BlobRef:
        """Upload a folder, file or archive; the result is a source for `create`."""
        pieces = uploads.chunks(path, progress)
        call = self._stub.UploadArchive(timeout=_UPLOAD_S, metadata=self._transport.metadata())
        project = self._project
        try:
            while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
                await call.write(pb.UploadArchiveRequest(project=project, chunk=piece))
                project = ""
            await call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass  # The server ended the call early; awaiting it below says why.
        except BaseException:
            call.cancel()
            raise
        try:
            return (await call).archive
        except grpc.aio.AioRpcError as failed:
            raise from_call(failed) from None

    async def get(self, name: str) -> pb.Dataset:
        """Return a dataset. Raises NotFound."""
        request = pb.GetDatasetRequest(name=self.full(name))
        return (await self._transport.call(self._stub.GetDataset, request)).dataset

    async def wait(
        self,
        name: str,
        *,
        timeout_s: float = 3600.0,
        progress: Callable[[pb.Dataset], None] | None = None,
    ) -> pb.Dataset:
        """Return the dataset once it is READY. Raises the error that made it FAILED."""
        until_s = time.monotonic() + timeout_s
        while True:
            dataset = await self.get(name)
            if progress is not None:
                progress(dataset)
            if dataset.state == pb.DATASET_STATE_FAILED:
                raise from_status(dataset.error)
            if dataset.state == pb.DATASET_STATE_READY:
                return dataset
            if time.monotonic() > until_s:
                raise DeadlinePassed(f"{dataset.name} is not ready after {timeout_s:.0f} s")
            await asyncio.sleep(_POLL_S)

    async def list(self) -> Sequence[pb.Dataset]:
        """Return the project's datasets, newest first."""

        async def fetch(token: str) -> tuple[Sequence[pb.Dataset], str]:
            request = pb.ListDatasetsRequest(
                project=self._project, page_size=PAGE_SIZE, page_token=token
            )
            page = await self._transport.call(self._stub.ListDatasets, request)
            return [*page.datasets], page.next_page_token

        return await collect(fetch)

    async def items(
        self, name: str, *, split: str = "", limit: int = 0
    ) -> Sequence[pb.DatasetItem]:
        """Return a dataset's items, or the first `limit` of them."""

        async def fetch(token: str) -> tuple[Sequence[pb.DatasetItem], str]:
            request = pb.ListDatasetItemsRequest(
                dataset=self.full(name), split=split, page_size=PAGE_SIZE, page_token=token
            )
            page = await self._transport.call(self._stub.ListDatasetItems, request)
            return [*page.items], page.next_page_token

        return await collect(fetch, limit=limit)

    def full(self, name: str) -> str:
        """Return the full name of `name`."""
        return names.full("datasets", name, project=self._project)
