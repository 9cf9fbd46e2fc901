"""A remote classifier in use: what its server told last, and batches that fit its requests."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from google.rpc import status_pb2
from stillhouse.inference.v2 import open_inference_pb2 as pb

from services.common import images, logs
from services.common.catalogue import RemoteClassifier
from services.common.errors import InvalidInput, Overloaded, PeerUnavailable
from services.common.tensors import Array
from services.teacher.remote.server import OipServer
from services.teacher.remote.tensors import RemoteTensors
from services.teacher.settings import TeacherSettings

_REQUEST_BYTES = 3 << 20
"""Elements of one request, so that it passes a server with gRPC's default limit of 4 MiB."""
_log = logs.get(__name__)


class RemoteModel:
    """One entry and its server. Belongs to one event loop."""

    def __init__(self, entry: RemoteClassifier, settings: TeacherSettings) -> None:
        limits = images.Limits(settings.max_image_bytes, settings.max_image_pixels)
        self.tensors = RemoteTensors(entry, limits)
        self.slots = asyncio.Semaphore(settings.oip_concurrency)
        """Bounds what is prepared and asked at once."""
        self.digest = ""
        """Of what the server told last; empty before it has been reached."""
        self._metadata = pb.ModelMetadataResponse()
        self._version = ""
        self._items, self._max_items = 0, settings.max_queue_items
        self._server = OipServer(
            entry,
            timeout_s=settings.oip_timeout_s,
            retry_s=settings.oip_retry_s,
            max_message_bytes=settings.max_message_bytes,
        )

    async def refresh(self, left_s: float | None) -> None:
        """Ask the server what it has. Raises PeerUnavailable, Precondition where it does not fit
        the entry."""
        metadata = await self._server.metadata(left_s)
        self.tensors.check(metadata)
        digest = self.tensors.digest(metadata)
        if digest != self.digest:
            _log.info("remote model", model=self.tensors.entry.id, digest=digest)
        self._metadata, self.digest = metadata, digest

    async def answers(
        self, elements: Sequence[bytes], left_s: float | None
    ) -> list[Array | status_pb2.Status]:
        """Logits [K] float32 of each image's raw elements, or why there are none.

        Raises PeerUnavailable also where the model was replaced meanwhile.
        """
        if not self.digest:
            await self.refresh(left_s)
        digest = self.digest
        found: list[Array | status_pb2.Status] = []
        for part in self._parts(elements):
            found += await self._part(part, left_s)
        if self.digest != digest:
            raise PeerUnavailable(f"{self.tensors.entry.id} was replaced meanwhile; try again")
        return found

    @contextmanager
    def waiting(self, items: int) -> Iterator[None]:
        """Count a call's images while the block runs. Raises Overloaded where too many wait."""
        if self._items and self._items + items > self._max_items:
            name, most = self.tensors.entry.id, self._max_items
            raise Overloaded(f"{self._items} items wait for {name}; the limit is {most}")
        self._items += items
        try:
            yield
        finally:
            self._items -= items

    async def close(self) -> None:
        """Close the connection."""
        await self._server.close()

    def _parts(self, elements: Sequence[bytes]) -> Iterator[list[bytes]]:
        part: list[bytes] = []
        size = 0
        for one in elements:
            full = len(part) >= self.tensors.entry.max_batch or size + len(one) > _REQUEST_BYTES
            if part and full:
                yield part
                part, size = [], 0
            part.append(one)
            size += len(one)
        if part:
            yield part

    async def _part(
        self, part: list[bytes], left_s: float | None
    ) -> list[Array | status_pb2.Status]:
        """Where the server refuses a request's input, its images are asked one by one: the protocol
        does not tell which one is to blame."""
        try:
            return list(await self._ask(part, left_s))
        except InvalidInput as error:
            if len(part) == 1:
                return [error.to_status()]
        return [row for one in part for row in await self._part([one], left_s)]

    async def _ask(self, part: list[bytes], left_s: float | None) -> Array:
        request = self.tensors.request(part, self._metadata)
        response = await self._server.infer(request, left_s)
        if self._version not in ("", response.model_version):
            await self.refresh(left_s)
        self._version = response.model_version
        return self.tensors.logits(response, len(part))
