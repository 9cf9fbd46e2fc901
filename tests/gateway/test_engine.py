"""The engine with a story of its own: what is recorded is not run again, whatever is killed."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import select
from stillhouse.gateway.v1 import jobs_pb2 as pb

from services.common.errors import InvalidInput, PeerUnavailable, Precondition
from services.gateway.jobs import records
from services.gateway.jobs.engine import Engine, system_database_url
from services.gateway.jobs.fence import Superseded
from services.gateway.jobs.heartbeat import GatewayRow, Heartbeat
from services.gateway.jobs.job import Job, Tools
from services.gateway.store import Store
from tests.gateway.stories import (
    SPEC,
    close,
    create,
    end,
    make_tools,
    new_database,
    reached,
    runs,
    start_doomed,
    story,
)

STAGES = ["fit", "fit", "ingest", "regions", "teacher_outputs"]


async def fail(job: Job) -> dict[str, str]:
    async def refuse(job: Job) -> None:
        raise Precondition("the classes differ", differences={"classes": "a and b"})

    await job.stage("check", refuse)
    return {}


async def crash(job: Job) -> dict[str, str]:
    raise ZeroDivisionError("secret detail")


@pytest.fixture
async def tools(tmp_path: Path) -> AsyncIterator[Tools]:
    made = make_tools(tmp_path)
    yield made
    await close(made)


async def test_a_story_runs_to_its_end_and_tells_of_it(tools: Tools, tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs/go").touch()
    engine = Engine(tools, {"concept": story})
    await engine.start()
    try:
        row = create(tools)
        await engine.enqueue(row)
        event = await end(tools, row)
        assert (event.state, event.message) == ("SUCCEEDED", "finished")
        told = [stage["stage"] for stage in event.stages if stage["complete"]]
        assert told == ["ingest", "teacher_outputs", "regions", "fit"]
        job = records.to_message(records.get(tools.store, "default", row.job_id), event)
        assert job.student_version == "2 12"
        assert job.end_time.seconds >= job.create_time.seconds
        events = records.events(tools.store, row.pk, 0)
        assert [e.seq for e in events] == list(range(1, len(events) + 1))
        await engine.enqueue(row)  # once more changes nothing
        await asyncio.sleep(0.3)
        assert len(runs(tmp_path)) == 4
    finally:
        await engine.stop()


@pytest.mark.parametrize(
    ("story_", "code", "words"), [(fail, 9, "the classes differ"), (crash, 13, "internal error")]
)
async def test_a_failure_is_told_clearly_and_a_bug_tells_nothing(
    tools: Tools, story_, code: int, words: str
) -> None:
    engine = Engine(tools, {"concept": story_})
    await engine.start()
    try:
        row = create(tools)
        await engine.enqueue(row)
        event = await end(tools, row)
        job = records.to_message(records.get(tools.store, "default", row.job_id), event)
        assert job.state == pb.JOB_STATE_FAILED
        assert job.error.code == code
        assert words in job.error.message
        assert "secret" not in str(job)
    finally:
        await engine.stop()


async def test_a_job_is_cancelled_while_it_runs_and_while_it_waits(
    tools: Tools, tmp_path: Path
) -> None:
    engine = Engine(tools, {"concept": story})
    await engine.start()
    try:
        rows = [create(tools) for _ in range(3)]  # two run, one waits
        for row in rows:
            await engine.enqueue(row)
        await reached(tmp_path, "fit", times=2)
        for row in reversed(rows):
            await engine.cancel(row)
        for row in rows:
            assert (await end(tools, row)).state == "CANCELLED"
        before = runs(tmp_path)
        (tmp_path / "blobs/go").touch()
        await asyncio.sleep(0.3)
        assert runs(tmp_path) == before
        assert not records.append(tools.store, rows[0].pk, "late", state="SUCCEEDED")
    finally:
        await engine.stop()


async def test_a_stopped_engine_goes_on_at_the_next_start(tools: Tools, tmp_path: Path) -> None:
    engine = Engine(tools, {"concept": story})
    await engine.start()
    row = create(tools)
    await engine.enqueue(row)
    await reached(tmp_path, "fit")
    await engine.stop()
    assert records.get(tools.store, "default", row.job_id).state == "RUNNING"
    (tmp_path / "blobs/go").touch()
    again = Engine(tools, {"concept": story})
    await again.start()
    try:
        assert (await end(tools, row)).state == "SUCCEEDED"
        assert sorted(runs(tmp_path)) == STAGES
    finally:
        await again.stop()


async def test_kill_nine_in_a_stage_repeats_that_stage_alone(tools: Tools, tmp_path: Path) -> None:
    process = await asyncio.to_thread(start_doomed, tmp_path)
    process.kill()
    process.wait()
    (tmp_path / "blobs/go").touch()
    engine = Engine(tools, {"concept": story})
    await engine.start()
    try:
        row = records.unfinished(tools.store)[0]
        event = await end(tools, row)
        assert event.state == "SUCCEEDED"
        assert sorted(runs(tmp_path)) == STAGES
        told = [e.message for e in records.events(tools.store, row.pk, 0)]
        assert "taken up again after a restart" in told
        assert records.to_message(row, None).name == records.name_of(row)
    finally:
        await engine.stop()


async def test_a_survivor_takes_over_a_dead_gateways_job_on_postgresql(
    tmp_path: Path, postgres_url: str
) -> None:
    url = new_database(postgres_url, "survivor")
    tools = make_tools(tmp_path, url, "gateway-0")
    try:
        process = await asyncio.to_thread(start_doomed, tmp_path, url, "gateway-1")
        engine = Engine(tools, {"concept": story})
        await engine.start()
        heartbeat = Heartbeat(tools.store, "gateway-0", engine.recover, every_s=0.1)
        try:
            heartbeat.start()
            await asyncio.sleep(1.5)
            assert runs(tmp_path).count("fit") == 1  # the other one lives: nothing is taken
            process.kill()
            process.wait()
            (tmp_path / "blobs/go").touch()
            row = records.unfinished(tools.store)[0]
            assert (await end(tools, row)).state == "SUCCEEDED"
            assert sorted(runs(tmp_path)) == STAGES
        finally:
            await heartbeat.stop()
            await engine.stop()
    finally:
        await close(tools)


async def test_a_gateway_that_stood_still_writes_nothing_any_more(
    tmp_path: Path, postgres_url: str
) -> None:
    url = new_database(postgres_url, "stood_still")
    tools = make_tools(tmp_path, url, "gateway-0")
    process = await asyncio.to_thread(start_doomed, tmp_path, url, "gateway-1")
    engine = Engine(tools, {"concept": story})
    await engine.start()
    heartbeat = Heartbeat(tools.store, "gateway-0", engine.recover, every_s=0.1)
    try:
        heartbeat.start()
        process.send_signal(signal.SIGSTOP)
        row = records.unfinished(tools.store)[0]
        await reached(tmp_path, "fit", times=2)  # now both are in the same stage
        process.send_signal(signal.SIGCONT)
        await asyncio.sleep(0.5)
        (tmp_path / "blobs/go").touch()
        assert (await end(tools, row)).state == "SUCCEEDED"
        await asyncio.sleep(1)
        told = [event.message for event in records.events(tools.store, row.pk, 0)]
        assert told[-1] == "finished"
        assert sum(message.startswith("fit: 1 images in") for message in told) == 1
    finally:
        process.kill()
        process.wait()
        await heartbeat.stop()
        await engine.stop()
        await close(tools)


async def test_a_job_in_flight_goes_on_under_another_version(
    tools: Tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Engine(tools, {"concept": story})
    await before.start()
    rows = [create(tools) for _ in range(3)]  # two run, one waits
    for row in rows:
        await before.enqueue(row)
    await reached(tmp_path, "fit", times=2)
    await before.stop()
    monkeypatch.setattr("services.gateway.jobs.engine.VERSION", "another")
    (tmp_path / "blobs/go").touch()
    after = Engine(tools, {"concept": story})
    await after.start()
    try:
        for row in rows:
            assert (await end(tools, row)).state == "SUCCEEDED"
        assert runs(tmp_path).count("ingest") == 2 + 3
    finally:
        await after.stop()


async def test_a_survivor_queues_what_a_dead_gateway_only_wrote_down(
    tools: Tools, tmp_path: Path
) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs/go").touch()
    engine = Engine(tools, {"concept": story})
    await engine.start()
    try:
        row = create(tools)  # as by a gateway that died before it queued the job
        await engine.recover(["gateway-1"])
        assert (await end(tools, row)).state == "SUCCEEDED"
    finally:
        await engine.stop()


async def test_a_gateway_whose_clock_jumps_takes_nobody_for_dead(
    tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(new_database(postgres_url, "jumping_clock"))
    taken: list[str] = []

    async def recover(dead: list[str]) -> None:
        taken.extend(dead)

    beats = [Heartbeat(store, f"gateway-{n}", recover, every_s=30) for n in (0, 1)]
    now_s = time.time()
    try:
        for heartbeat, jump_s in zip(beats, (0, 3600), strict=True):
            monkeypatch.setattr(time, "time", lambda jump_s=jump_s: now_s + jump_s)
            heartbeat.start()
            until_s = time.monotonic() + 30
            while await asyncio.to_thread(_count, store) <= beats.index(heartbeat):
                assert time.monotonic() < until_s
                await asyncio.sleep(0.05)
        await asyncio.sleep(0.3)
        assert not taken
    finally:
        for heartbeat in beats:
            await heartbeat.stop()
        store.close()


def _count(store: Store) -> int:
    with store.read() as session:
        return len(session.scalars(select(GatewayRow)).all())


def test_an_old_run_of_a_story_is_refused(tools: Tools) -> None:
    row = create(tools)
    records.take(tools.store, row.pk, 1)
    records.append(tools.store, row.pk, "by the first", run=1)
    records.take(tools.store, row.pk, 3)
    for attempt in (
        lambda: records.append(tools.store, row.pk, "late", run=1),
        lambda: records.note(tools.store, row.pk, run=1, run_id="late"),
        lambda: records.take(tools.store, row.pk, 2),
    ):
        with pytest.raises(Superseded):
            attempt()
    records.append(tools.store, row.pk, "by the third", run=3)
    records.append(tools.store, row.pk, "by a caller")
    told = [event.message for event in records.events(tools.store, row.pk, 1)]
    assert told == ["by the first", "by the third", "by a caller"]


async def test_a_request_id_makes_one_job(tools: Tools) -> None:
    first, second = create(tools, request_id="one"), create(tools, request_id="one")
    assert first.job_id == second.job_id
    assert create(tools).job_id != first.job_id
    request = pb.CreateDistillationJobRequest(project="default", job=SPEC, request_id="one")
    request.job.concept.seed = 5
    with pytest.raises(InvalidInput):
        records.create(tools.store, request)


async def test_watchers_share_one_poller_and_miss_nothing(tools: Tools) -> None:
    row = create(tools)

    async def watch(after: int) -> list[int]:
        return [event.seq async for event in tools.feed.follow(row.pk, after)]

    watchers = [asyncio.create_task(watch(after)) for after in (0, 0, 1, 3)]
    for n in range(5):
        await asyncio.to_thread(records.append, tools.store, row.pk, f"step {n}")
        await asyncio.sleep(0.03 * (n % 2))
    late = asyncio.create_task(watch(0))
    await asyncio.to_thread(records.append, tools.store, row.pk, "end", state="SUCCEEDED")
    seen = await asyncio.wait_for(asyncio.gather(*watchers, late), 10)
    assert seen == [list(range(after + 1, 8)) for after in (0, 0, 1, 3, 0)]
    assert await asyncio.wait_for(watch(7), 5) == []
    row = create(tools)
    left = asyncio.create_task(end(tools, row))
    await asyncio.sleep(0.1)
    await tools.feed.close()
    with pytest.raises(PeerUnavailable):
        await asyncio.wait_for(left, 5)
    assert sum(task.get_name() == "job events" for task in asyncio.all_tasks()) <= 1


def test_the_engine_has_its_own_sqlite_file_and_shares_postgresql() -> None:
    assert system_database_url("sqlite:////x/gateway.db") == "sqlite:////x/gateway-workflows.db"
    url = "postgresql+psycopg://user:secret@host/db"
    assert system_database_url(url) == url
