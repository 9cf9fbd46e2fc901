"""Connections on which nothing comes, or hardly anything: they end, and slow ones that go on do
not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.gateway.edge_world import World, edge_world

HEAD = b"POST /v1/projects/default/archives HTTP/1.1\r\nHost: 127.0.0.1\r\n"
READ_S = 1.0


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with edge_world(tmp_path, http_read_s=READ_S) as found:
        yield found


async def _answer(world: World, *parts: bytes, pause_s: float = 0.0) -> bytes:
    """Send parts with pauses between them; return all that comes back until the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", world.edge.port)
    try:
        for part in parts:
            writer.write(part)
            await asyncio.sleep(pause_s)
        return await asyncio.wait_for(reader.read(), 60)
    finally:
        writer.close()


@pytest.mark.parametrize(
    "sent", [b"", b"GET", HEAD, HEAD + b"Content-Length: 50\r\n\r\nhalf"], ids=len
)
async def test_a_request_that_stops_is_closed(world: World, sent: bytes) -> None:
    assert (await _answer(world, sent)).startswith(b"HTTP/1.1 408 ")


async def test_headers_that_trickle_get_no_more_time(world: World) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", world.edge.port)
    writer.write(HEAD)
    reading = asyncio.create_task(reader.read())
    for at in range(600):
        if reading.done():
            break
        writer.write(b"X-%d: y\r\n" % at)
        await asyncio.sleep(READ_S / 10)
    assert (await reading).startswith(b"HTTP/1.1 408 ")
    writer.close()


async def test_a_body_that_arrives_slowly_is_taken(world: World) -> None:
    body = b"not an archive\0" * 8
    head = HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    pieces = [body[at : at + 15] for at in range(0, len(body), 15)]
    answer = await _answer(world, head, *pieces, pause_s=READ_S / 4)
    assert answer.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("method", ["POST", "HEAD"])
@pytest.mark.parametrize("host", ["127.0.0.1", "evil.example"])
async def test_a_body_that_is_no_http_is_refused_once(
    world: World, caplog: pytest.LogCaptureFixture, host: str, method: str
) -> None:
    """Also where the request, begun by then, has an answer at once: a host that is not ours; and
    where the answer to it may have no body."""
    head = b"%s /v1/projects HTTP/1.1\r\nHost: %s\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = await _answer(world, head % (method.encode(), host.encode()) + b"zz\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1") == 1
    assert not [one for one in caplog.records if one.levelname == "ERROR"]


async def test_a_kept_connection_serves_a_second_request_after_the_time(world: World) -> None:
    assert (await world.http.get("/v1/info")).status_code == 200
    await asyncio.sleep(1.5 * READ_S)
    assert (await world.http.get("/v1/info")).status_code == 200
