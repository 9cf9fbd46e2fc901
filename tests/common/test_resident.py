"""Models in memory: who stays, who leaves, and that nobody is put away while in use."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable

import pytest

from services.common.errors import NotFound, Overloaded, Precondition
from services.common.resident import Load, Loaded, Residents


class World:
    """Models are strings; records what was loaded and what was put away."""

    def __init__(self, budget: int, *pinned: str) -> None:
        self.loads: list[str] = []
        self.gone: list[str] = []
        self.held: Residents[str, str] = Residents(
            budget, self._put_away, pinned=lambda key: key in pinned
        )

    async def _put_away(self, model: str) -> None:
        self.gone.append(model)

    def load(self, key: str, size: int = 10, under: Hashable | None = None) -> Load[str]:
        async def work() -> Loaded[str]:
            await asyncio.sleep(0)
            self.loads.append(key)
            return Loaded(key, size, under)

        return work

    async def touch(self, key: str, size: int = 10) -> None:
        async with self.held.use(key, self.load(key, size)) as model:
            assert model == key

    async def touch_head(self, key: str, under: str) -> None:
        async def work() -> Loaded[str]:
            await self.touch(under)
            return Loaded(key, 1, under)

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
        await asyncio.sleep(0.01)
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


async def test_a_head_is_loaded_again_where_its_trunk_left_meanwhile() -> None:
    world = World(0)
    rounds = 0

    async def work() -> Loaded[str]:
        nonlocal rounds
        rounds += 1
        await world.touch("trunk")
        if rounds == 1:
            await world.held.unload("trunk")
        return Loaded("head", 1, "trunk")

    async with world.held.use("head", work) as model:
        assert model == "head"
    assert rounds == 2


async def test_close_closes_all() -> None:
    world = World(0)
    await world.touch("a")
    await world.touch("b")
    await world.held.close()
    assert (sorted(world.gone), world.here) == (["a", "b"], [])
