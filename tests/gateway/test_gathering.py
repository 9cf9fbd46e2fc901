"""Reads that are made together: fresh for every caller, and each caller gets its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from services.gateway import gathering
from services.gateway.gathering import Crowd, Gathered


class Table:
    """Values by key, read while the gate is open; it counts reads."""

    def __init__(self) -> None:
        self.values = {"a": 1, "b": 2}
        self.reads: list[list[str]] = []
        self.gate = threading.Event()
        self.gate.set()

    def load(self, keys: Sequence[str]) -> dict[str, int]:
        self.reads.append(list(keys))
        found = {key: self.values[key] for key in keys if key in self.values}
        assert self.gate.wait(10)
        if "bad" in keys:
            raise KeyError("bad")
        return found


async def began(table: Table, reads: int) -> None:
    async with asyncio.timeout(10):
        while len(table.reads) < reads:
            await asyncio.sleep(0.001)


async def test_what_comes_during_a_read_shares_the_next_one() -> None:
    table = Table()
    gathered = Gathered(table.load)
    assert await gathered.get("a") == 1
    table.gate.clear()
    first = asyncio.create_task(gathered.get("a"))
    await began(table, 2)
    rest = [asyncio.create_task(gathered.get(key)) for key in ("a", "b", "a", "none")]
    await asyncio.sleep(0)
    table.gate.set()
    assert await asyncio.gather(first, *rest) == [1, 1, 2, 1, None]
    assert table.reads == [["a"], ["a"], ["a", "b", "none"]]


async def test_nobody_gets_what_was_read_before_they_asked() -> None:
    table = Table()
    gathered = Gathered(table.load)
    table.gate.clear()
    early = asyncio.create_task(gathered.get("a"))
    await began(table, 1)
    table.values["a"] = 7
    late = asyncio.create_task(gathered.get("a"))
    await asyncio.sleep(0)
    table.gate.set()
    assert await asyncio.gather(early, late) == [1, 7]


async def test_a_read_that_fails_fails_its_callers_and_no_others() -> None:
    table = Table()
    gathered = Gathered(table.load)
    table.gate.clear()
    failing = asyncio.create_task(gathered.get("bad"))
    await began(table, 1)
    waiting = asyncio.create_task(gathered.get("b"))
    await asyncio.sleep(0)
    table.gate.set()
    with pytest.raises(KeyError):
        await failing
    assert await waiting == 2


async def test_a_caller_that_leaves_disturbs_nobody() -> None:
    table = Table()
    gathered = Gathered(table.load)
    table.gate.clear()
    leaving, staying = (asyncio.create_task(gathered.get("a")) for _ in range(2))
    await began(table, 1)
    leaving.cancel()
    table.gate.set()
    assert await staying == 1
    assert leaving.cancelled()


async def test_a_large_crowd_is_served_in_parts() -> None:
    table = Table()
    table.values = {str(n): n for n in range(200)}
    gathered = Gathered(table.load)
    assert await asyncio.gather(*(gathered.get(str(n)) for n in range(200))) == list(range(200))
    assert max(len(keys) for keys in table.reads) == 64


async def test_a_crowd_waits_until_it_is_complete_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "_PAUSE_S", 30.0)
    table = Table()
    gathered = Gathered(table.load)
    await asyncio.gather(gathered.get("a"), gathered.get("b"))
    first = asyncio.create_task(gathered.get("a"))
    await asyncio.sleep(0.05)  # long enough for a read of one, had it not waited
    assert table.reads == [["a", "b"]]
    assert await gathered.get("b") == 2
    assert await first == 1
    assert table.reads == [["a", "b"], ["a", "b"]]


async def test_who_is_left_of_a_crowd_waits_for_it_once() -> None:
    table = Table()
    gathered = Gathered(table.load)
    await asyncio.gather(gathered.get("a"), gathered.get("b"))
    assert await gathered.get("a") == 1
    assert gathered._crowd._crowd == 1


async def test_several_kinds_read_in_one_hop_and_fail_apart() -> None:
    table, other, crowd = Table(), Table(), Crowd()
    other.values = {"a": 7}
    one, two = Gathered(table.load, crowd), Gathered(other.load, crowd)
    assert await asyncio.gather(one.get("a"), two.get("a"), one.get("b")) == [1, 7, 2]
    assert (table.reads, other.reads) == ([["a", "b"]], [["a"]])
    found = await asyncio.gather(one.get("bad"), two.get("a"), return_exceptions=True)
    assert isinstance(found[0], KeyError)
    assert found[1] == 7


async def test_who_finds_no_thread_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*_: object) -> None:
        raise RuntimeError("cannot schedule new futures after shutdown")

    monkeypatch.setattr(asyncio, "to_thread", closed)
    gathered = Gathered(Table().load)
    with pytest.raises(RuntimeError, match="cannot schedule"):
        await asyncio.wait_for(gathered.get("a"), 10)
