"""Progress: events in the words of the domain, with speed and time left, that survive a restart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.gateway.jobs import progress as module
from services.gateway.jobs import records
from services.gateway.jobs.job import Tools
from services.gateway.jobs.progress import Progress
from tests.gateway.stories import close, create, make_tools


@pytest.fixture
async def tools(tmp_path: Path) -> AsyncIterator[Tools]:
    made = make_tools(tmp_path)
    yield made
    await close(made)


def messages(tools: Tools, pk: int) -> list[str]:
    return [event.message for event in records.events(tools.store, pk, 0)]


async def test_an_event_says_what_is_done_how_fast_and_what_is_left(
    tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_EVENT_S", 0.0)
    row = create(tools)
    progress = Progress(tools.store, tools.feed, row.pk, [])
    progress.expect({"fit": 40.0})
    await progress.begin("regions")
    await asyncio.sleep(0.05)
    await progress.update("regions", done=640, total=2054, unit="images", cache_hits=100)
    event = records.last_event(tools.store, row.pk)
    assert event is not None
    assert event.message.startswith("regions: 640 of 2,054 images, ")
    assert event.message.endswith(" s left")
    assert " images/s, " in event.message
    assert event.eta_s > 40
    await progress.complete("regions")
    event = records.last_event(tools.store, row.pk)
    assert event is not None
    assert "100 from the cache" in event.message
    assert event.stages[0]["complete"]
    assert event.eta_s == 40


async def test_steps_of_equal_length_tell_what_is_left(
    tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps that an earlier attempt took say nothing of the speed of this one."""
    monkeypatch.setattr(module, "_EVENT_S", 0.0)
    row = create(tools)
    progress = Progress(tools.store, tools.feed, row.pk, [])
    progress.expect({"fit": 4000.0})
    await progress.begin("fit")
    await progress.update("fit", done=1, total=1000, unit="steps")
    assert progress.left_s() > 3000
    await progress.update("fit", done=800, total=1000, unit="steps", even=True)
    assert progress.left_s() > 3000
    await asyncio.sleep(0.2)
    await progress.update("fit", done=801, total=1000, unit="steps", even=True)
    assert 35 < progress.left_s() < 2000
    assert " steps/s, " in messages(tools, row.pk)[-1]


async def test_a_counter_does_not_flood_the_watchers(tools: Tools) -> None:
    row = create(tools)
    progress = Progress(tools.store, tools.feed, row.pk, [])
    await progress.begin("regions")
    for done in range(200):
        await progress.update("regions", done=done, total=200, unit="images")
    assert len(messages(tools, row.pk)) < 10


async def test_a_stage_that_starts_again_keeps_the_time_it_took(tools: Tools) -> None:
    row = create(tools)
    before = {"stage": "fit", "done": 3, "total": 9, "unit": "steps", "elapsed_s": 12.5}
    progress = Progress(tools.store, tools.feed, row.pk, [before])
    await progress.begin("fit")
    event = records.last_event(tools.store, row.pk)
    assert event is not None
    (stage,) = event.stages
    assert stage["done"] == 0
    assert 12.5 <= stage["elapsed_s"] < 13


async def test_nothing_is_told_after_the_end(tools: Tools) -> None:
    row = create(tools)
    progress = Progress(tools.store, tools.feed, row.pk, [])
    await progress.say("finished", state="SUCCEEDED")
    await progress.say("late")
    assert messages(tools, row.pk)[-1] == "finished"
