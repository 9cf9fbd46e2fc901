"""Server streams over HTTP: as server-sent events, or as plain bytes where they carry a file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
from google.protobuf.message import Message
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from services.gateway.http import payloads, statuses
from services.gateway.http.calls import Caller
from services.gateway.http.rules import Rule

HEARTBEAT_S = 15.0
_FIRST_S = 0.5
_RETRY_MS = 2000
_EVENTS = "text/event-stream"
_TOKEN = "resume_token"
_EVENT_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
_FILE_HEADERS = {
    "Cache-Control": "private, max-age=31536000, immutable",
    "Content-Disposition": "attachment",
}


def resume(rule: Rule, message: Message, request: Request) -> bool:
    """Fill in where a browser that lost its stream wants to go on; return whether it does."""
    last = request.headers.get("last-event-id", "")
    if not last or _TOKEN not in rule.method.input_type.fields_by_name:
        return False
    setattr(message, _TOKEN, last)
    return True


async def events(caller: Caller, rule: Rule, message: Message, request: Request) -> Response:
    """Answer with server-sent events: one `data:` line of JSON each, with its resume token as id.

    An error is the event `error` with a Status; before the first event it is an ordinary error
    response, but for callers that accept event streams alone, which is how browsers ask: their
    pages never see such a response. The event `end` says that nothing will follow; who comes back
    all the same gets 204, at which browsers stop asking.
    """
    resumed = resume(rule, message, request)
    call = caller.stream(rule, message, request)
    first = asyncio.ensure_future(call.read())
    try:
        await asyncio.wait({first}, timeout=_FIRST_S)
    except BaseException:
        first.cancel()
        call.cancel()
        raise
    if first.done() and request.headers.get("accept") != _EVENTS:
        first.result()
    if resumed and first.done() and not first.exception() and first.result() is grpc.aio.EOF:
        return Response(status_code=204, headers=_EVENT_HEADERS)
    return StreamingResponse(_lines(call, first), headers=_EVENT_HEADERS, media_type=_EVENTS)


async def _lines(call: Any, reading: asyncio.Future[Any]) -> AsyncIterator[bytes]:
    try:
        yield f"retry: {_RETRY_MS}\n\n".encode()
        while True:
            await asyncio.wait({reading}, timeout=HEARTBEAT_S)
            if not reading.done():
                yield b": still here\n\n"
                continue
            message = reading.result()
            if message is grpc.aio.EOF:
                yield b"event: end\ndata: {}\n\n"
                return
            yield await _event(message)
            reading = asyncio.ensure_future(call.read())
    except grpc.aio.AioRpcError as error:
        yield b"event: error\ndata: " + statuses.to_json(statuses.of(error)) + b"\n\n"
    finally:
        reading.cancel()
        call.cancel()


async def _event(message: Message) -> bytes:
    token = str(getattr(message, _TOKEN, ""))
    head = f"id: {token}\n".encode() if token.isprintable() and token else b""
    return head + b"data: " + await payloads.to_json(message) + b"\n\n"


async def file(
    caller: Caller, rule: Rule, message: Message, request: Request, digest: str
) -> Response:
    """Answer with the bytes of a stream. A failure on the way cuts the connection, so that no
    caller takes a part for the whole."""
    call = caller.stream(rule, message, request)
    try:
        first = await call.read()
    except BaseException:
        call.cancel()
        raise
    headers = {**_FILE_HEADERS, "ETag": f'"{digest}"'}
    if request.headers.get("if-none-match") == headers["ETag"]:
        call.cancel()
        return Response(status_code=304, headers=headers)
    body = _chunks(call, first, rule.bytes_field)
    return StreamingResponse(body, headers=headers, media_type="application/octet-stream")


async def _chunks(call: Any, message: Any, field: str) -> AsyncIterator[bytes]:
    try:
        while message is not grpc.aio.EOF:
            yield getattr(message, field)
            message = await call.read()
    finally:
        call.cancel()
