"""Attempts are repeated while a peer is away, and when it says so while it is overloaded."""

from __future__ import annotations

import asyncio

import grpc.aio
import pytest
from stillhouse.common.v1 import info_pb2, info_pb2_grpc

from services.common.channels import call, open_channel, retrying
from services.common.errors import OutOfMemory, Overloaded, PeerUnavailable, StillhouseError
from services.common.interceptors import Context


async def pauses(monkeypatch: pytest.MonkeyPatch, *errors: StillhouseError) -> list[float]:
    """How long `retrying` sleeps between attempts that fail with these errors."""
    slept: list[float] = []
    left = list(errors)

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def attempt() -> int:
        if left:
            raise left.pop(0)
        return 7

    monkeypatch.setattr(asyncio, "sleep", sleep)
    assert await retrying(attempt, give_up_s=1000, what="test") == 7
    return slept


async def test_an_overloaded_peer_is_asked_again_when_it_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full = Overloaded("full", retry_after_s=20.0)
    away = PeerUnavailable("away", retry_after_s=20.0)
    first, second, third = await pauses(monkeypatch, away, full, away)
    assert first <= 0.13
    assert 14 <= second <= 26
    assert third <= 3 * 1.3


async def test_a_server_that_cancels_a_call_as_it_shuts_down_is_away() -> None:
    class Slow(info_pb2_grpc.InfoServiceServicer):
        async def GetInfo(self, request: info_pb2.GetInfoRequest, context: Context) -> None:
            called.set()
            await context.abort(grpc.StatusCode.CANCELLED, "shutting down")

    called = asyncio.Event()
    server = grpc.aio.server()
    info_pb2_grpc.add_InfoServiceServicer_to_server(Slow(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with open_channel(f"127.0.0.1:{port}", max_message_bytes=1 << 20) as channel:
            method = info_pb2_grpc.InfoServiceStub(channel).GetInfo
            with pytest.raises(PeerUnavailable, match="shutting down"):
                await call(method, info_pb2.GetInfoRequest(), timeout_s=10)
        assert called.is_set()
    finally:
        await server.stop(None)


async def test_what_does_not_fit_into_memory_is_not_tried_again() -> None:
    async def attempt() -> int:
        raise OutOfMemory("16 items do not fit")

    with pytest.raises(OutOfMemory):
        await retrying(attempt, give_up_s=1000, what="test")


async def test_who_gives_up_says_on_what() -> None:
    async def attempt() -> int:
        raise PeerUnavailable("Deadline Exceeded")

    with pytest.raises(PeerUnavailable, match="regions: no answer for 0 s, at last: Deadline"):
        await retrying(attempt, give_up_s=0.2, what="regions")
