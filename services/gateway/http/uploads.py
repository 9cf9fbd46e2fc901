"""Takes an archive as the body of a request and hands it on as it arrives, never holding it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from stillhouse.gateway.v1 import datasets_pb2 as pb
from stillhouse.gateway.v1 import datasets_pb2_grpc

from services.gateway.http import calls, payloads, statuses
from services.gateway.http.calls import BodyTooLarge, Caller

_CHUNK_BYTES = 1 << 18
_LINGER_S = 3.0
_FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")


class Uploads:
    """`POST /v1/projects/{project}/archives`."""

    def __init__(self, caller: Caller, *, max_bytes: int) -> None:
        self._stub = datasets_pb2_grpc.DatasetServiceStub(caller.channel)
        self._max_bytes = max_bytes

    async def __call__(self, request: Request) -> Response:
        """Store the body; errors of the call are raised."""
        if request.headers.get("content-type", "").partition(";")[0].lower() in _FORMS:
            said = "send the archive itself, as application/octet-stream, not a form"
            return refuse(statuses.make("INVALID_ARGUMENT", said), http=415)
        calls.check_length(request, self._max_bytes)
        call: Any = self._stub.UploadArchive(metadata=calls.metadata(request))
        try:
            await self._hand_on(request, call)
            answer: pb.UploadArchiveResponse = await call
        except (grpc.aio.AioRpcError, BodyTooLarge) as error:
            return refuse(statuses.of(error), http=413 if isinstance(error, BodyTooLarge) else 0)
        finally:
            call.cancel()
        headers = {"Cache-Control": "no-store"}
        return Response(payloads.dump(answer), headers=headers, media_type="application/json")

    async def _hand_on(self, request: Request, call: Any) -> None:
        """Send the body. Raises ClientDisconnect, BodyTooLarge; a call that ended tells why."""
        project, size = request.path_params["project"], 0
        async for chunk in _chunks(request):
            size += len(chunk)
            if size > self._max_bytes:
                raise BodyTooLarge(self._max_bytes)
            if call.done():
                return
            try:
                await call.write(pb.UploadArchiveRequest(project=project, chunk=chunk))
            except (asyncio.InvalidStateError, grpc.aio.AioRpcError):
                return
        if not call.done():
            await call.done_writing()


async def _chunks(request: Request) -> AsyncIterator[bytes]:
    """Yield the body in pieces that are worth a message each."""
    parts, size = [], 0
    async for part in request.stream():
        parts.append(part)
        size += len(part)
        if size >= _CHUNK_BYTES:
            yield b"".join(parts)
            parts, size = [], 0
    # An empty body is a message too, so that the gateway says what is wrong with it.
    yield b"".join(parts)


def refuse(status: Any, *, http: int = 0) -> Response:
    """Return an error for a request whose body was not read to its end."""
    plain = statuses.response(status, http=http)
    return _Lingering(bytes(plain.body), plain.status_code, dict(plain.headers))


class _Lingering(Response):
    """Ends the connection only after some time in which what still arrives is thrown away: a
    browser that is sending would otherwise see a broken connection instead of the answer."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.headers["Connection"] = "close"
        start = {"type": "http.response.start", "status": self.status_code}
        await send({**start, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        try:
            async with asyncio.timeout(_LINGER_S):
                await _discard(receive)
        except (TimeoutError, ClientDisconnect):
            pass
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _discard(receive: Receive) -> None:
    more = True
    while more:
        message = await receive()
        more = message["type"] == "http.request" and bool(message.get("more_body"))
