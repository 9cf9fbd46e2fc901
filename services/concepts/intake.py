"""From an image on the wire to a tensor: read, decoded and preprocessed, the threads shared fairly
between projects.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from google.rpc import status_pb2
from PIL import Image
from stillhouse.common.v1 import items_pb2
from torch import Tensor

from services.common import images, metrics
from services.common.blobs import BlobStore
from services.common.fair_pool import FairPool
from services.common.fairness import Flow
from services.common.inputs import each, read_bytes
from services.common.settings import ModelSettings


@dataclass(frozen=True)
class Prepared:
    """An image ready for the model."""

    square: Tensor
    """uint8 [S, S, 3], where the model computes."""
    spent_ms: float


class Reader(Protocol):
    """How a model wants its images."""

    @property
    def decode_px(self) -> int:
        """Pixels that the edges of a decoded image must have at least; 0 means its own size."""
        ...

    def square(self, image: Image.Image) -> Tensor:
        """Return the uint8 [S, S, 3] that the model sees of an RGB image."""
        ...


class Intake:
    """Prepares the images of calls. A call is admitted by its queue first, so that decoded tensors
    are bounded however many callers there are."""

    def __init__(self, settings: ModelSettings, blobs: BlobStore) -> None:
        self._limits = images.Limits(settings.max_image_bytes, settings.max_image_pixels)
        self._blobs = blobs
        self._decoders = FairPool(settings.decode_threads, settings.weights, name="decode")

    async def prepare(
        self, items: Sequence[items_pb2.ImageInput], flow: Flow, reader: Reader
    ) -> list[Prepared | status_pb2.Status]:
        """Prepare every item; one that cannot be used becomes a status and harms no other."""

        async def one(item: items_pb2.ImageInput) -> Prepared:
            data = await read_bytes(item, self._blobs, flow.project)
            return await self._decoders.run(partial(self.read, data, reader), flow=flow)

        return await each(items, one)

    def read(self, data: bytes, reader: Reader) -> Prepared:
        """Decode and preprocess one image. Raises ImageError."""
        started_s = time.perf_counter()
        image = images.decode(data, self._limits, at_least_px=reader.decode_px)
        square = reader.square(image)
        spent_s = time.perf_counter() - started_s
        metrics.DECODE_SECONDS.observe(spent_s)
        return Prepared(square, spent_s * 1000)

    def close(self) -> None:
        """Stop the decoders."""
        self._decoders.close()
