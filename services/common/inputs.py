"""Image inputs of a batch call: validated, read from the blob store where they come by digest."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from google.rpc import status_pb2
from stillhouse.common.v1 import items_pb2

from services.common.blobs import BlobStore, check_digest
from services.common.errors import Internal, InvalidInput, StillhouseError

R = TypeVar("R")
MAX_ITEM_ID = 256


def check_batch(items: Sequence[object], *, limit: int) -> None:
    """Raise InvalidInput where a batch is empty or over `limit` items."""
    if not items:
        raise InvalidInput("items: at least one is required", field="items")
    if len(items) > limit:
        raise InvalidInput(f"items: {len(items)} in one call, the limit is {limit}", field="items")


async def read_bytes(item: items_pb2.ImageInput, blobs: BlobStore, project: str) -> bytes:
    """Return an item's encoded image. Raises InvalidInput or NotFound."""
    if len(item.item_id) > MAX_ITEM_ID:
        raise InvalidInput(f"item_id: longer than {MAX_ITEM_ID} characters", field="item_id")
    source = item.WhichOneof("source")
    if source == "digest":
        return await asyncio.to_thread(blobs.get, project, check_digest(item.digest))
    if source == "data":
        return item.data
    raise InvalidInput("source: one of digest, data is required", field="source")


async def each(
    items: Sequence[items_pb2.ImageInput], work: Callable[[items_pb2.ImageInput], Awaitable[R]]
) -> list[R | status_pb2.Status]:
    """Run `work` on every item at once; an item that fails becomes a status and harms no other."""

    async def one(item: items_pb2.ImageInput) -> R | status_pb2.Status:
        try:
            return await work(item)
        except StillhouseError as error:
            return (
                Internal("internal error").to_status()
                if isinstance(error, Internal)
                else error.to_status()
            )

    return list(await asyncio.gather(*(one(item) for item in items)))
