"""From an image on the wire to a tensor: read, decoded and preprocessed, with bounded work and
memory.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from google.rpc import status_pb2
from stillhouse.common.v1 import items_pb2
from torch import Tensor

from services.common import images, metrics
from services.common.blobs import BlobStore
from services.common.errors import Overloaded
from services.common.inputs import check_batch, each, read_bytes
from services.common.settings import ModelSettings
from services.torch_common.preprocess import Preprocessing


@dataclass(frozen=True)
class Prepared:
    """An image ready for the model."""

    tensor: Tensor
    """fp32 [3, S, S]."""
    spent_ms: float


class Intake:
    """Prepares the images of calls, and refuses calls once too many images are in the service.

    Every image counts from its call's arrival to its answer, so that decoded tensors are bounded by
    `max_queue_items` however many callers there are.
    """

    def __init__(self, settings: ModelSettings, blobs: BlobStore) -> None:
        self._limit, self._batch_limit = settings.max_queue_items, settings.max_batch_items
        self._limits = images.Limits(settings.max_image_bytes, settings.max_image_pixels)
        self._blobs = blobs
        self._decoders = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="decode")
        self._inside = 0

    @contextmanager
    def admitted(self, items: Sequence[items_pb2.ImageInput]) -> Iterator[None]:
        """Count a call's images while it runs. Raises InvalidInput, Overloaded."""
        check_batch(items, limit=self._batch_limit)
        if self._inside and self._inside + len(items) > self._limit:
            metrics.refuse("images", len(items), reason=Overloaded.reason)
            raise Overloaded(
                f"{self._inside} images are in the service; the limit is {self._limit}"
            )
        self._inside += len(items)
        try:
            yield
        finally:
            self._inside -= len(items)

    async def prepare(
        self, items: Sequence[items_pb2.ImageInput], project: str, preprocessing: Preprocessing
    ) -> list[Prepared | status_pb2.Status]:
        """Prepare every item; one that cannot be used becomes a status and harms no other."""
        loop = asyncio.get_running_loop()

        async def one(item: items_pb2.ImageInput) -> Prepared:
            data = await read_bytes(item, self._blobs, project)
            return await loop.run_in_executor(self._decoders, self.tensor, data, preprocessing)

        return await each(items, one)

    def tensor(self, data: bytes, preprocessing: Preprocessing) -> Prepared:
        """Decode and preprocess one image. Raises ImageError."""
        started_s = time.perf_counter()
        tensor = preprocessing(images.decode(data, self._limits))
        spent_s = time.perf_counter() - started_s
        metrics.DECODE_SECONDS.observe(spent_s)
        return Prepared(tensor, spent_s * 1000)

    def close(self) -> None:
        """Stop the decoders."""
        self._decoders.shutdown(wait=False, cancel_futures=True)
