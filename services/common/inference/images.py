"""Images of a ModelInfer call as the items of our own calls: encoded ones as they are, pixels in
an uncompressed file, so that both take one path and its limits."""

from __future__ import annotations

import asyncio
import io
from dataclasses import dataclass

from PIL import Image
from stillhouse.common.v1 import items_pb2

from services.common.errors import InvalidInput, StillhouseError, from_status
from services.common.images import Limits
from services.common.inference.requests import InferCall
from services.common.inference.tensors import BYTES
from services.common.settings import ServiceSettings
from services.common.tensors import Array, expect

IMAGES = "images"
_HOW = f"send one, {IMAGES}: BYTES [N] of encoded images, or UINT8 [N, height, width, 3]"


@dataclass(frozen=True)
class ImageLimits:
    """What a call may send."""

    images: Limits
    max_items: int


def image_limits(settings: ServiceSettings) -> ImageLimits:
    """Return the limits of a service."""
    own = Limits(settings.max_image_bytes, settings.max_image_pixels)
    return ImageLimits(own, settings.max_batch_items)


async def read_images(call: InferCall, limits: ImageLimits) -> list[items_pb2.ImageInput]:
    """Return the images of a call, at least one. Raises InvalidInput; whether they can be decoded
    is for the model to say."""
    call.check_inputs([IMAGES], how=_HOW)
    if call.datatype(IMAGES) == BYTES:
        return _encoded(call, limits)
    if call.datatype(IMAGES) == "UINT8":
        return await asyncio.to_thread(_pixels, call, limits)
    raise InvalidInput(f"{IMAGES}: {call.datatype(IMAGES)[:20]!r}; {_HOW}", field=IMAGES)


def failed(index: int, error: StillhouseError) -> StillhouseError:
    """Return the error of a whole call, one of whose images failed: it names the image."""
    status = error.to_status()
    status.message = f"{IMAGES}[{index}]: {error.message}"
    return from_status(status)


def _encoded(call: InferCall, limits: ImageLimits) -> list[items_pb2.ImageInput]:
    shape = call.shape(IMAGES)
    if len(shape) != 1 and (len(shape) != 2 or shape[1] != 1):
        raise InvalidInput(f"{IMAGES}: shape {shape}; {_HOW}", field=IMAGES)
    _check_count(shape[0], limits)
    return [items_pb2.ImageInput(data=data) for data in call.elements(IMAGES)]


def _pixels(call: InferCall, limits: ImageLimits) -> list[items_pb2.ImageInput]:
    shape = call.shape(IMAGES)
    if len(shape) != 4 or shape[3] != 3 or not all(shape[1:]):
        raise InvalidInput(f"{IMAGES}: shape {shape}; {_HOW}", field=IMAGES)
    _check_count(shape[0], limits)
    size = shape[1] * shape[2] * 3
    if size > limits.images.max_bytes:
        raise InvalidInput(
            f"{IMAGES}: {size:,} bytes of pixels an image, the limit is "
            f"{limits.images.max_bytes:,}; send them encoded",
            field=IMAGES,
        )
    rows = expect(call.array(IMAGES), shape=(None, None, None, 3), field=IMAGES)
    return [items_pb2.ImageInput(data=_uncompressed(row)) for row in rows]


def _check_count(count: int, limits: ImageLimits) -> None:
    if not 1 <= count <= limits.max_items:
        raise InvalidInput(f"{IMAGES}: {count} images, 1 to {limits.max_items} fit", field=IMAGES)


def _uncompressed(pixels: Array) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "BMP")
    return out.getvalue()
