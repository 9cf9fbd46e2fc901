"""The cache of embeddings in Redis: raw fp16 behind a checked header.

The cache may be absent, slow, restarted, emptied or wrong; each of these is a miss and costs time
only. After a failure Redis is left alone for a moment, so that a dead one does not delay every
call by its time-out.
"""

from __future__ import annotations

import contextlib
import hashlib
import struct
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
import redis.asyncio
from redis.exceptions import RedisError

from services.common import logs, metrics
from services.common.errors import PeerUnavailable
from services.common.tensors import Array
from services.gateway.keys import ImageSpace, RegionSpace, image_key, project_patterns, region_key

V = TypeVar("V")
_log = logs.get(__name__)
_MAGIC = b"SHR1"
_HEADER = struct.Struct("<4sIIII16s")
"""Magic, regions, width, map rows, map columns, first half of the SHA-256 of shapes and data."""
_ROW_MAGIC = b"SHI1"
_ROW_HEADER = struct.Struct("<4sI16s")
"""Magic, width, first half of the SHA-256 of the data."""
_REST_S = 2.0
_FAILURES = (RedisError, OSError, TimeoutError)


@dataclass(frozen=True)
class Regions:
    """Regions of one image: `embeddings` float16 [R, D], whole image first; `map` uint8 [h, w]."""

    embeddings: Array
    map: Array


def encode(regions: Regions) -> bytes:
    """Return the value stored for one image."""
    count, width = regions.embeddings.shape
    rows, columns = regions.map.shape
    body = regions.embeddings.astype("<f2", copy=False).tobytes() + regions.map.tobytes()
    shapes = struct.pack("<IIII", count, width, rows, columns)
    check = hashlib.sha256(shapes + body).digest()[:16]
    return _HEADER.pack(_MAGIC, count, width, rows, columns, check) + body


def decode(value: bytes) -> Regions | None:
    """Return the regions of a stored value; None where it is not exactly what `encode` wrote."""
    if len(value) < _HEADER.size:
        return None
    magic, count, width, rows, columns, check = _HEADER.unpack_from(value)
    body = memoryview(value)[_HEADER.size :]
    if magic != _MAGIC or len(body) != 2 * count * width + rows * columns:
        return None
    shapes = struct.pack("<IIII", count, width, rows, columns)
    if hashlib.sha256(shapes + bytes(body)).digest()[:16] != check:
        return None
    split = 2 * count * width
    return Regions(
        np.frombuffer(body[:split], "<f2").reshape(count, width),
        np.frombuffer(body[split:], "u1").reshape(rows, columns),
    )


def encode_row(row: Array) -> bytes:
    """Return the value stored for one embedding float16 [D]."""
    body = row.astype("<f2", copy=False).tobytes()
    return _ROW_HEADER.pack(_ROW_MAGIC, len(row), hashlib.sha256(body).digest()[:16]) + body


def decode_row(value: bytes) -> Array | None:
    """Return the embedding of a stored value; None where it is not what `encode_row` wrote."""
    if len(value) < _ROW_HEADER.size:
        return None
    magic, width, check = _ROW_HEADER.unpack_from(value)
    body = value[_ROW_HEADER.size :]
    if magic != _ROW_MAGIC or len(body) != 2 * width:
        return None
    if hashlib.sha256(body).digest()[:16] != check:
        return None
    return np.frombuffer(body, "<f2")


class EmbeddingCache:
    """Looks up and stores embeddings by full key. Without a URL every look-up is a miss."""

    def __init__(self, url: str, *, timeout_s: float = 0.5) -> None:
        self._redis: Any = (
            redis.asyncio.from_url(
                url,
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                retry_on_timeout=False,
                protocol=2,
            )
            if url
            else None
        )
        self._rest_until_s = 0.0
        self.hits = self.misses = 0

    async def get(self, space: RegionSpace, items: Sequence[str]) -> list[Regions | None]:
        """Return the regions of each item digest, None where they are not there: one MGET."""
        return await self._find([region_key(space, item) for item in items], decode)

    async def put(self, space: RegionSpace, found: dict[str, Regions]) -> None:
        """Store regions by item digest, in one pipeline; losing them costs time only."""
        await self._keep({region_key(space, item): encode(one) for item, one in found.items()})

    async def rows(self, space: ImageSpace, items: Sequence[str]) -> list[Array | None]:
        """Return the embedding float16 [D] of each item digest, None where it is not there: one
        MGET."""
        return await self._find([image_key(space, item) for item in items], decode_row)

    async def put_rows(self, space: ImageSpace, found: dict[str, Array]) -> None:
        """Store embeddings by item digest, in one pipeline; losing them costs time only."""
        await self._keep({image_key(space, item): encode_row(one) for item, one in found.items()})

    async def count(self, space: RegionSpace, items: Sequence[str]) -> int:
        """Return how many of the items are there."""
        if not items:
            return 0
        keys = [region_key(space, item) for item in items]
        return int(await self._try(lambda: self._redis.exists(*keys)) or 0)

    @property
    def resting(self) -> bool:
        """Whether Redis is left alone after a failure."""
        return time.monotonic() < self._rest_until_s

    def wake(self) -> None:
        """Ask Redis again from now on."""
        self._rest_until_s = 0.0

    async def close(self) -> None:
        """Close the connections."""
        if self._redis is not None:
            with contextlib.suppress(*_FAILURES):
                await self._redis.aclose()

    async def _find(
        self, keys: Sequence[str], decoded: Callable[[bytes], V | None]
    ) -> list[V | None]:
        found: list[V | None] = [None] * len(keys)
        if keys:
            # As bytes, which the client sends as they are.
            wanted = [key.encode() for key in keys]
            values = await self._try(lambda: self._redis.mget(wanted))
            if values is not None:
                found = [None if value is None else decoded(value) for value in values]
        self._count(found)
        return found

    async def _keep(self, values: dict[str, bytes]) -> None:
        if not values:
            return

        async def send() -> None:
            async with self._redis.pipeline(transaction=False) as pipe:
                for key, value in values.items():
                    pipe.set(key, value)
                await pipe.execute()

        await self._try(send)

    async def forget(self, project: str, *, dry_run: bool = False) -> int:
        """Remove a project's entries and return how many there were. Unlike look-ups it raises
        PeerUnavailable where Redis is away: what is not removed must not pass for removed."""
        count = 0
        try:
            for pattern in project_patterns(project) if self._redis is not None else ():
                found = [key async for key in self._redis.scan_iter(pattern, count=1000)]
                count += len(found)
                for at in range(0, 0 if dry_run else len(found), 1000):
                    await self._redis.unlink(*found[at : at + 1000])
        except _FAILURES as error:
            raise PeerUnavailable(f"the cache is away: {error}"[:200]) from None
        return count

    async def _try(self, command: Any) -> Any:
        """Run a command; None where there is no Redis, it rests after a failure, or fails now."""
        if self._redis is None or self.resting:
            return None
        try:
            return await cast("Awaitable[Any]", command())
        except _FAILURES as error:
            self._rest_until_s = time.monotonic() + _REST_S
            _log.warning("cache is away; going on without it", reason=str(error)[:200])
            return None

    def _count(self, found: Sequence[object | None]) -> None:
        hits = sum(one is not None for one in found)
        self.hits, self.misses = self.hits + hits, self.misses + len(found) - hits
        metrics.look_up("regions", hits=hits, misses=len(found) - hits)
