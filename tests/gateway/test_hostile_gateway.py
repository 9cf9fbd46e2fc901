"""A sample of the hostile campaign on one gateway: every RPC and route, none answers INTERNAL.

What it calls is away, so that these are the gateway's own checks; `make hostile` has all services.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from tests.gateway.edge_world import edge_world
from tests.hostile.entry import Rpc, rpcs
from tests.hostile.inputs import Input, Source
from tests.hostile.names import plausible_names
from tests.hostile.sending import Outcome, Sender

INPUTS = 300
_NEEDS_THE_ENGINE = {"CreateDistillationJob", "CancelDistillationJob"}


@dataclass
class Target:
    """One gateway."""

    names: dict[str, list[Any]]
    rpcs: list[Rpc]
    ports: dict[str, int]
    http_port: int
    socket: Path


def send_all(target: Target, count: int, seed: int = 0) -> list[tuple[Input, Outcome]]:
    """Send the first inputs of a seed, a few at a time."""
    source, sender = Source(target, seed), Sender(target, deadline_s=30)
    inputs = [source.make(number) for number in range(count)]
    mine = [one for one in inputs if one.kind != "cache" and not _is_away(one)]
    try:
        with ThreadPoolExecutor(4) as pool:
            return list(zip(mine, pool.map(sender.send, mine), strict=True))
    finally:
        sender.close()


def _is_away(one: Input) -> bool:
    """Whether it asks for the workflow engine, which does not run here."""
    return any(name in one.method for name in _NEEDS_THE_ENGINE) or "distillationJobs" in one.label


async def test_nothing_is_internal_and_nothing_hangs(tmp_path: Path) -> None:
    async with edge_world(tmp_path, http_read_s=1.0) as world:
        await world.add_dataset("fruit")
        port = int(world.address.rpartition(":")[2])

        def work() -> list[tuple[Input, Outcome]]:
            with grpc.insecure_channel(world.address) as channel:
                found = list(rpcs("gateway", channel))
            target = Target(plausible_names(), found, {"gateway": port}, world.edge.port, tmp_path)
            return send_all(target, INPUTS)

        outcomes = await asyncio.to_thread(work)
    bad = [(one.label, got) for one, got in outcomes if got.is_internal or got.is_late]
    assert not bad
    codes = {got.code for _, got in outcomes}
    assert {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "200", "400", "404"} <= codes
