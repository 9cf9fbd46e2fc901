"""Small WebP pictures of a project's images, or of a part of one."""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
from collections import OrderedDict

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from stillhouse.gateway.v1 import access_pb2, access_pb2_grpc, students_pb2_grpc
from stillhouse.gateway.v1 import students_pb2 as pb

from services.common import images
from services.common.errors import InvalidInput
from services.common.images import Box, ImageError, Limits
from services.gateway.http import calls
from services.gateway.http.calls import Caller

MIN_PX, MAX_PX, DEFAULT_PX = 32, 1024, 160
_CACHE_BYTES = 64 << 20
_NAMES = {"size_px", "sizePx", "box"}


class Thumbnails:
    """`GET /v1/projects/{project}/images/{digest}?size_px=160&box=left,top,right,bottom`."""

    def __init__(self, caller: Caller, limits: Limits, *, asks: bool = False) -> None:
        """`asks` is whether the gateway asks who calls: what is kept is then shown only after it
        has been asked again."""
        self._asks = asks
        self._access = access_pb2_grpc.AccessServiceStub(caller.channel)
        self._stub = students_pb2_grpc.BlobServiceStub(caller.channel)
        self._limits = limits
        self._cache = _Cache(_CACHE_BYTES)
        self._decoding = asyncio.Semaphore(max(1, min(4, os.cpu_count() or 1)))

    async def __call__(self, request: Request) -> Response:
        """Answer with WebP. Raises InvalidInput, ImageError, and errors of the call."""
        size_px, box = _parameters(request)
        who = calls.metadata(request)[1:]
        # By caller as well: what was allowed to one is not shown to another unasked.
        said = repr((request.path_params, size_px, box, who))
        key = hashlib.sha256(said.encode()).hexdigest()
        data = self._cache.get(key)
        if data is not None and self._asks:  # his key may have been revoked meanwhile
            asked = access_pb2.WhoAmIRequest(project=request.path_params["project"])
            metadata = calls.metadata(request)
            await self._access.WhoAmI(asked, metadata=metadata, timeout=calls.CALL_S)
        if data is None:
            data = await self._make(request, size_px, box)
            self._cache.put(key, data)
        etag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
        headers = {"Cache-Control": "private, max-age=31536000, immutable", "ETag": etag}
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        return Response(data, headers=headers, media_type="image/webp")

    async def _make(self, request: Request, size_px: int, box: Box | None) -> bytes:
        async with self._decoding:
            if await request.is_disconnected():  # scrolled away while it waited
                raise ClientDisconnect
            data = await self._read(request)
            return await asyncio.to_thread(images.thumbnail, data, size_px, self._limits, box=box)

    async def _read(self, request: Request) -> bytes:
        """Return the encoded image. Raises ImageError over the limit, AioRpcError."""
        blob = pb.ReadBlobRequest(**request.path_params)
        call = self._stub.ReadBlob(blob, metadata=calls.metadata(request), timeout=calls.CALL_S)
        parts, size = [], 0
        try:
            async for message in call:
                size += len(message.chunk)
                if size > self._limits.max_bytes:
                    said = f"the image is over the limit of {self._limits.max_bytes:,} bytes"
                    raise ImageError(said, "IMAGE_TOO_MANY_BYTES")
                parts.append(message.chunk)
        finally:
            call.cancel()
        return b"".join(parts)


class _Cache:
    """Bytes by key, the least recently asked for dropped first."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._held_bytes = 0
        self._entries: OrderedDict[str, bytes] = OrderedDict()

    def get(self, key: str) -> bytes | None:
        found = self._entries.get(key)
        if found is not None:
            self._entries.move_to_end(key)
        return found

    def put(self, key: str, data: bytes) -> None:
        self._held_bytes += len(data) - len(self._entries.pop(key, b""))
        self._entries[key] = data
        while self._held_bytes > self._limit_bytes:
            self._held_bytes -= len(self._entries.popitem(last=False)[1])


def _parameters(request: Request) -> tuple[int, Box | None]:
    """Return size in pixels, clamped, and the box asked for. Raises InvalidInput."""
    query = request.query_params
    for name in query:
        if name not in _NAMES:
            raise InvalidInput(f"{name[:80]}: there is no such parameter", field=name[:80])
    asked = query.get("size_px") or query.get("sizePx") or str(DEFAULT_PX)
    if not (asked.isascii() and asked.isdigit() and len(asked) < 10):
        raise InvalidInput(f"size_px: {asked[:20]!r} is not a number of pixels", field="size_px")
    return min(max(int(asked), MIN_PX), MAX_PX), _box(query.get("box", ""))


def _box(text: str) -> Box | None:
    if not text:
        return None
    try:
        left, top, right, bottom = (float(part) for part in text.split(","))
    except ValueError:
        left = top = right = bottom = math.nan
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise InvalidInput("box: not left,top,right,bottom as shares from 0 to 1", field="box")
    return left, top, right, bottom
