"""Several instances: calls in turn, for those that are ready; none is lost with an instance."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from stillhouse.common.v1 import info_pb2, info_pb2_grpc

from services.common.addresses import check_address, is_several, target
from services.common.channels import call, open_channel, retrying
from services.common.errors import Cancelled, PeerUnavailable, StillhouseError
from tests.support import free_port


class Instance(info_pb2_grpc.InfoServiceServicer):
    """A server on a port of its own that says which one it is, and how often it was asked."""

    def __init__(self, port: int) -> None:
        self.port, self.asked = port, 0
        self.working = asyncio.Event()
        self.may_end = asyncio.Event()
        self.may_end.set()
        self._checks = health.aio.HealthServicer()
        self._server = grpc.aio.server()
        info_pb2_grpc.add_InfoServiceServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(self._checks, self._server)

    async def GetInfo(
        self, request: info_pb2.GetInfoRequest, context: Any
    ) -> info_pb2.GetInfoResponse:
        self.asked += 1
        self.working.set()
        await self.may_end.wait()
        return info_pb2.GetInfoResponse(service=str(self.port))

    async def start(self, *, ready: bool = True) -> None:
        await self.set_ready(ready)
        self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def set_ready(self, ready: bool) -> None:
        codes = health_pb2.HealthCheckResponse
        await self._checks.set("", codes.SERVING if ready else codes.NOT_SERVING)

    async def drain(self, grace_s: float) -> None:
        """End as services do after SIGTERM."""
        await self._checks.enter_graceful_shutdown()
        await self._server.stop(grace_s)

    async def kill(self) -> None:
        await self._server.stop(None)


@asynccontextmanager
async def instances(
    *, started: int, reserved: int = 0
) -> AsyncIterator[tuple[list[Instance], Any]]:
    """Instances, of which the last `reserved` are not started, and a channel to them all."""
    made = [Instance(free_port()) for _ in range(started + reserved)]
    for one in made[:started]:
        await one.start()
    address = ", ".join(f"127.0.0.1:{one.port}" for one in made)
    channel = open_channel(address, max_message_bytes=1 << 20)
    try:
        yield made, info_pb2_grpc.InfoServiceStub(channel).GetInfo  # type: ignore[no-untyped-call]
    finally:
        await channel.close()
        for one in made:
            one.may_end.set()
            await one.kill()


async def ask(method: Any, times: int = 1) -> Counter[str]:
    """Call so often; return how often each instance answered."""
    answers: Counter[str] = Counter()
    for _ in range(times):
        reply = await call(method, info_pb2.GetInfoRequest(), timeout_s=10)
        answers[reply.service] += 1
    return answers


async def until_shared(method: Any, count: int) -> None:
    """Call until so many instances answer in turn."""
    async with asyncio.timeout(20):
        while len(await ask(method, 2 * count)) < count:
            await asyncio.sleep(0.05)


async def test_instances_answer_in_turn_and_a_late_one_takes_its_part() -> None:
    async with instances(started=2, reserved=1) as (made, method):
        await until_shared(method, 2)
        assert [*(await ask(method, 60)).values()] == [30, 30]
        await made[2].start()
        await until_shared(method, 3)
        assert [*(await ask(method, 90)).values()] == [30, 30, 30]


async def test_a_methods_calls_take_turns_beside_anothers_and_an_instance_that_is_away() -> None:
    async with instances(started=2, reserved=1) as (made, method):
        await until_shared(method, 2)
        address = ",".join(f"127.0.0.1:{one.port}" for one in made)
        async with open_channel(address, max_message_bytes=1 << 20) as channel:
            stub = info_pb2_grpc.InfoServiceStub(channel)  # type: ignore[no-untyped-call]
            await until_shared(stub.GetInfo, 2)
            answers: Counter[str] = Counter()
            for at in range(24):  # so long that the one that is away is tried again
                answers += await ask(stub.GetInfo)
                if at % 3 == 0:
                    with pytest.raises(StillhouseError):  # the servicer does not have it
                        await call(stub.GetStats, info_pb2.GetStatsRequest(), timeout_s=10)
                await asyncio.sleep(0.1)
            assert [*answers.values()] == [12, 12]


async def test_the_first_call_waits_for_who_is_there_and_learns_that_nobody_is() -> None:
    async with instances(started=1, reserved=1) as (made, method):
        assert await ask(method) == {str(made[0].port): 1}
    async with instances(started=0, reserved=2) as (_, method):
        with pytest.raises(PeerUnavailable):
            await ask(method)


async def test_an_instance_that_is_not_ready_gets_no_calls_until_it_is() -> None:
    async with instances(started=1, reserved=1) as (made, method):
        await made[1].start(ready=False)
        await ask(method)
        await asyncio.sleep(0.3)
        assert set(await ask(method, 20)) == {str(made[0].port)}
        assert made[1].asked == 0
        await made[1].set_ready(True)
        await until_shared(method, 2)
        await made[0].set_ready(False)
        async with asyncio.timeout(10):
            while len(await ask(method, 4)) > 1:
                await asyncio.sleep(0.05)
        assert set(await ask(method, 20)) == {str(made[1].port)}


async def only(method: Any, one: Instance) -> bool:
    """Whether one instance answers all new calls; one that just began to drain can still cut off
    a call that is on its way to it."""
    try:
        return set(await ask(method, 4)) == {str(one.port)}
    except Cancelled:
        return False


async def test_a_call_in_flight_is_answered_by_a_draining_instance_and_new_ones_go_elsewhere() -> (
    None
):
    async with instances(started=2) as (made, method):
        await until_shared(method, 2)
        made[0].may_end.clear()
        before = sum(one.asked for one in made)
        calls = [asyncio.create_task(ask(method)) for _ in range(6)]
        async with asyncio.timeout(10):
            while sum(one.asked for one in made) < before + 6:
                await asyncio.sleep(0.01)
        draining = asyncio.create_task(made[0].drain(20))
        async with asyncio.timeout(10):
            while not await only(method, made[1]):
                await asyncio.sleep(0.05)
        started_s = time.monotonic()
        made[0].may_end.set()
        answers = sum(await asyncio.gather(*calls), Counter[str]())
        assert answers.total() == 6
        assert answers[str(made[0].port)] >= 1
        await draining  # the callers' health watches do not hold it up to the end of its grace
        assert time.monotonic() - started_s < 15


async def test_a_call_lost_with_its_instance_is_made_again_at_another() -> None:
    async with instances(started=2) as (made, method):
        await until_shared(method, 2)
        for one in made:
            one.working.clear()
        made[0].may_end.clear()

        async def insist() -> Counter[str]:
            return await retrying(lambda: ask(method), give_up_s=20, what="a test")

        calls = [asyncio.create_task(insist()) for _ in range(2)]
        await asyncio.wait_for(made[0].working.wait(), 10)
        await made[0].kill()
        answers = sum(await asyncio.gather(*calls), Counter[str]())
        assert answers == {str(made[1].port): 2}


@pytest.mark.parametrize(
    ("address", "wanted", "several"),
    [
        ("host:7101", "host:7101", False),
        ("dns:///teacher:7101", "dns:///teacher:7101", True),
        ("10.0.0.1:7101, 10.0.0.2:7101", "ipv4:10.0.0.1:7101,10.0.0.2:7101", True),
        ("ipv4:10.0.0.1:1,10.0.0.2:1", "ipv4:10.0.0.1:1,10.0.0.2:1", True),
        ("unix:///run/teacher.sock", "unix:///run/teacher.sock", False),
    ],
)
def test_an_address_is_one_a_name_or_a_list(address: str, wanted: str, several: bool) -> None:
    assert target(check_address(address)) == wanted
    assert is_several(address) == several


@pytest.mark.parametrize(
    "address",
    ["one:7101,two:7101", "10.0.0.1:7101,", "10.0.0.1,10.0.0.2:1", "10.0.0.1:0,1.1.1.1:1"],
)
def test_a_list_of_anything_but_addresses_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="is not an IPv4 address|has no port"):
        check_address(address)
