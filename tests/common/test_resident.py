"""Models in memory: who stays, who leaves, and that nobody is put away while in use."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from services.common.errors import NotFound, Overloaded, Precondition
from services.common.resident import Load, Loaded, Residents


async def settled() -> None:
    """Let all tasks run until they wait for something."""
    for _ in range(50):
        await asyncio.sleep(0)


class World:
    """Models are strings; records what was loaded and what was put away."""

    def __init__(self, budget: int, *pinned: str) -> None:
        self.loads: list[str] = []
        self.gone: list[str] = []
        self.may_load, self.may_leave = asyncio.Event(), asyncio.Event()
        self.may_load.set()
        self.may_leave.set()
        self.held: Residents[str, str] = Residents(
            budget, self._put_away, pinned=lambda key: key in pinned
        )

    async def _put_away(self, model: str) -> None:
        await self.may_leave.wait()
        self.gone.append(model)

    def load(self, key: str, size: int = 10) -> Load[str]:
        async def work() -> Loaded[str]:
            self.loads.append(key)
            await self.may_load.wait()
            return Loaded(key, size)

        return work

    async def touch(self, key: str, size: int = 10) -> None:
        async with self.held.use(key, self.load(key, size)) as model:
            assert model == key

    async def touch_head(self, key: str, under: str) -> None:
        async def work() -> Loaded[str]:
            async with self.held.use(under, self.load(under)) as trunk:
                return Loaded(key, 1, trunk)

        async with self.held.use(key, work):
            pass

    @property
    def here(self) -> list[str]:
        return [one.key for one in self.held]


async def test_the_least_recently_used_leaves_first() -> None:
    world = World(30)
    for key in ("a", "b", "c", "a", "d"):
        await world.touch(key)
    assert (world.here, world.gone) == (["c", "a", "d"], ["b"])
    assert world.held.size_bytes == 30
    await world.touch("b")
    assert (world.gone, world.loads) == (["b", "c"], ["a", "b", "c", "d", "b"])


async def test_no_budget_keeps_everything() -> None:
    world = World(0)
    for key in "abcdef":
        await world.touch(key, 1 << 40)
    assert len(world.here) == 6


async def test_concurrent_callers_share_one_load() -> None:
    world = World(0)
    await asyncio.gather(*(world.touch("a") for _ in range(8)))
    assert world.loads == ["a"]


async def test_what_is_in_use_stays_and_the_newcomer_is_refused_for_now() -> None:
    world = World(20)
    async with world.held.use("a", world.load("a")), world.held.use("b", world.load("b")):
        with pytest.raises(Overloaded) as refused:
            await world.touch("c")
        assert not isinstance(refused.value, Precondition)
        assert (world.here, world.gone) == (["a", "b"], ["c"])
    await world.touch("c")
    assert world.here == ["b", "c"]


async def test_what_can_never_fit_is_a_precondition() -> None:
    world = World(20, "kept")
    await world.touch("kept", 15)
    with pytest.raises(Precondition, match="max_models_bytes"):
        await world.touch("large", 6)
    await world.touch("small", 5)
    assert world.here == ["kept", "small"]


async def test_a_pinned_model_is_loaded_whatever_it_takes_and_never_leaves() -> None:
    world = World(20, "kept")
    await world.touch("a", 10)
    await world.touch("kept", 50)
    assert (world.here, world.gone) == (["kept"], ["a"])
    with pytest.raises(Precondition, match="stays"):
        await world.held.unload("kept")


async def test_a_trunk_stays_as_long_as_what_stands_on_it() -> None:
    world = World(25)
    await world.touch_head("head", "trunk")
    await world.touch("other")
    assert world.here == ["head", "trunk", "other"]
    await world.touch_head("head", "trunk")
    await world.touch("more")
    assert (world.here, world.gone) == (["head", "trunk", "more"], ["other"])
    await world.touch("again", 20)
    assert world.gone == ["other", "head", "trunk", "more"]


async def test_unload_waits_for_calls_in_flight_and_takes_what_stands_on_it() -> None:
    world = World(0)
    await world.touch_head("head", "trunk")
    async with world.held.use("head", world.load("head")):
        leaving = asyncio.create_task(world.held.unload("trunk"))
        await settled()
        assert (world.here, world.gone) == ([], [])
        assert not leaving.done()
    assert await leaving
    assert world.gone == ["head", "trunk"]
    assert not await world.held.unload("trunk")


async def test_a_failed_load_leaves_nothing() -> None:
    world = World(0)

    async def fails() -> Loaded[str]:
        raise NotFound("no such model", resource="a")

    with pytest.raises(NotFound):
        async with world.held.use("a", fails):
            pass
    await world.touch("a")
    assert world.here == ["a"]


@pytest.mark.parametrize("comes_back", [False, True])
async def test_a_head_is_loaded_again_where_its_trunk_left_meanwhile(comes_back: bool) -> None:
    closed: list[object] = []

    async def put_away(model: object) -> None:
        closed.append(model)

    async def trunk() -> Loaded[object]:
        return Loaded(object(), 10)

    async def head() -> Loaded[object]:
        async with held.use("trunk", trunk) as under:
            stands_on.append(under)
        if len(stands_on) == 1:
            await held.unload("trunk")
            if comes_back:  # under the same name, but another one
                async with held.use("trunk", trunk):
                    pass
        return Loaded(object(), 1, under)

    held: Residents[str, object] = Residents(0, put_away)
    stands_on: list[object] = []
    async with held.use("head", head):
        assert closed == stands_on[:1]
        assert stands_on[1:] == [held.find("trunk")]
        assert not await held.unload("nobody")


async def test_a_load_goes_on_where_its_callers_leave_and_serves_those_who_come() -> None:
    world = World(0)
    world.may_load.clear()
    impatient = [asyncio.create_task(world.touch("a")) for _ in range(3)]
    await settled()
    for one in impatient:
        one.cancel()
    await asyncio.gather(*impatient, return_exceptions=True)
    comes = asyncio.create_task(world.touch("a"))
    await settled()
    world.may_load.set()
    await comes
    assert (world.loads, world.here) == (["a"], ["a"])
    assert await world.held.unload("a")


async def test_what_is_loaded_for_nobody_is_there_and_can_leave() -> None:
    world = World(10)
    world.may_load.clear()
    left = asyncio.create_task(world.touch("a"))
    await settled()
    left.cancel()
    world.may_load.set()
    await settled()
    assert world.here == ["a"]
    await world.touch("b")
    assert (world.here, world.gone) == (["b"], ["a"])


async def test_a_newcomer_stays_until_those_who_wait_for_it_have_it() -> None:
    world = World(10)
    world.may_load.clear()
    waiting = [asyncio.create_task(world.touch(key)) for key in "ab"]
    await settled()
    world.may_load.set()
    first, second = await asyncio.gather(*waiting, return_exceptions=True)
    assert (first, type(second)) == (None, Overloaded)
    assert world.loads == ["a", "b"]


async def test_nobody_gets_a_newcomer_that_finds_no_room() -> None:
    world = World(20)
    await world.touch("a")
    async with world.held.use("b", world.load("b")):

        async def caller() -> None:
            async with world.held.use("c", world.load("c", 15)):
                await world.may_leave.wait()
                await settled()
                assert "c" not in world.gone, "it was closed while it was in use"

        world.may_leave.clear()  # "a" takes its time
        first = asyncio.create_task(caller())
        await settled()
        second = asyncio.create_task(caller())
        await settled()
        world.may_leave.set()
        for refused in await asyncio.gather(first, second, return_exceptions=True):
            assert isinstance(refused, Overloaded), refused
    assert (world.here, world.gone) == (["b"], ["a", "c"])


async def test_names_that_could_not_be_loaded_leave_no_trace() -> None:
    class Name:
        """Compared by identity, and seen to go."""

    async def put_away(model: str) -> None:
        raise AssertionError("nothing was loaded")

    async def fails() -> Loaded[str]:
        await asyncio.sleep(0)
        raise NotFound("no such model", resource="a")

    async def ask(name: Name) -> None:
        with pytest.raises(NotFound):
            async with held.use(name, fails):
                pass

    held: Residents[Name, str] = Residents(0, put_away)
    names = [Name() for _ in range(3)]
    await asyncio.gather(*(ask(name) for name in names * 2))
    gone = [weakref.ref(name) for name in names]
    del names
    gc.collect()
    assert [one() for one in gone] == [None] * 3


async def test_close_closes_all() -> None:
    world = World(0)
    await world.touch("a")
    await world.touch("b")
    world.may_load.clear()
    waits = asyncio.create_task(world.touch("c"))
    await settled()
    await world.held.close()
    assert (sorted(world.gone), world.here) == (["a", "b"], [])
    with pytest.raises(asyncio.CancelledError):
        await waits
