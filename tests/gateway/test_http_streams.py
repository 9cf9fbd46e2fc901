"""Server-sent events: live, resumed, ended, broken off; and blobs as bytes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
from stillhouse.gateway.v1 import jobs_pb2, jobs_pb2_grpc

from services.gateway.http import streams
from services.gateway.jobs import records
from services.gateway.store import JobRow
from tests.gateway.edge_world import ROOT, World, as_json, edge_world
from tests.gateway.stories import SPEC

JOB = jobs_pb2.CreateDistillationJobRequest(project="default", job=SPEC)


@dataclass
class Event:
    """One server-sent event as a browser reads it."""

    id: str = ""
    kind: str = "message"
    data: str = ""


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with edge_world(tmp_path) as running:
        yield running


async def make_job(world: World) -> JobRow:
    row, _ = await asyncio.to_thread(records.create, world.gateway.store, JOB)
    return row


async def tell(world: World, row: JobRow, message: str, state: str = "RUNNING") -> None:
    await asyncio.to_thread(
        records.append, world.gateway.store, row.pk, state=state, message=message
    )
    world.gateway.feed.ring()


def path_of(row: JobRow) -> str:
    return f"/v1/{records.name_of(row)}:watch"


async def read(response: httpx2.Response, comments: list[str] | None = None) -> list[Event]:
    """Return all events until the stream ends."""
    found, event = [], Event()
    async for line in response.aiter_lines():
        key, _, value = line.partition(": ")
        if line.startswith(":") and comments is not None:
            comments.append(line)
        elif not line and event.data:
            found.append(event)
            event = Event()
        elif key in ("id", "data"):
            setattr(event, key, value)
        elif key == "event":
            event.kind = value
    return found


async def watch(world: World, row: JobRow, last: str = "") -> tuple[httpx2.Response, list[Event]]:
    headers = {"Last-Event-ID": last} if last else {}
    async with world.http.stream("GET", path_of(row), headers=headers) as response:
        return response, await read(response)


async def test_events_are_those_of_grpc(world: World) -> None:
    row = await make_job(world)
    await tell(world, row, "halfway")
    watching = asyncio.create_task(watch(world, row))
    await asyncio.sleep(0.3)
    await tell(world, row, "no students", "FAILED")
    response, events = await asyncio.wait_for(watching, 10)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-store"

    stub = jobs_pb2_grpc.DistillationServiceStub(world.channel)
    request = jobs_pb2.WatchDistillationJobRequest(name=records.name_of(row))
    expected = [message async for message in stub.WatchDistillationJob(request)]
    assert [json.loads(e.data) for e in events[:-1]] == [as_json(m) for m in expected]
    assert [e.id for e in events[:-1]] == [m.resume_token for m in expected]
    assert events[-1].kind == "end"


async def test_a_browser_goes_on_where_it_was(world: World) -> None:
    row = await make_job(world)
    await tell(world, row, "one")
    await tell(world, row, "done", "FAILED")
    _, events = await watch(world, row)
    _, rest = await watch(world, row, last=events[0].id)
    assert [e.data for e in rest] == [e.data for e in events[1:]]
    ended = await world.http.get(path_of(row), headers={"Last-Event-ID": events[-2].id})
    assert ended.status_code == 204
    wrong = await world.http.get(path_of(row), headers={"Last-Event-ID": "x y"})
    assert wrong.status_code == 400


async def test_an_unknown_job_is_404(world: World) -> None:
    answer = await world.get("/distillationJobs/none:watch")
    assert answer.status_code == 404
    assert answer.json()["code"] == 5


async def test_a_page_is_told_of_an_error_in_the_stream(world: World) -> None:
    """A browser's EventSource shows its page no error response."""
    accept = {"Accept": "text/event-stream"}
    path = f"{ROOT}/distillationJobs/none:watch"
    async with world.http.stream("GET", path, headers=accept) as response:
        (event,) = await read(response)
    assert (response.status_code, event.kind) == (200, "error")
    assert json.loads(event.data)["code"] == 5


async def test_a_silent_stream_shows_that_it_lives(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "HEARTBEAT_S", 0.05)
    row = await make_job(world)
    comments: list[str] = []
    async with world.http.stream("GET", path_of(row)) as response:
        reading = asyncio.create_task(read(response, comments))
        await asyncio.sleep(0.4)
        await tell(world, row, "done", "FAILED")
        await asyncio.wait_for(reading, 10)
    assert len(comments) >= 3


async def test_a_gateway_that_stops_says_so_at_the_end(world: World) -> None:
    row = await make_job(world)
    watching = asyncio.create_task(watch(world, row))
    await asyncio.sleep(0.3)
    await world.gateway.feed.close()
    _, events = await asyncio.wait_for(watching, 10)
    assert events[-1].kind == "error"
    assert json.loads(events[-1].data)["code"] == 14


async def test_a_drained_edge_takes_no_more(world: World) -> None:
    await world.edge.drain()
    await asyncio.sleep(0.4)
    with pytest.raises(httpx2.ConnectError):
        await world.http.get("/v1/info")


async def test_one_poller_serves_all_and_forgets_who_left(world: World) -> None:
    row = await make_job(world)
    watching = [asyncio.create_task(watch(world, row)) for _ in range(5)]
    feed = world.gateway.feed
    await until(lambda: len(feed._watchers.get(row.pk, ())) == 5)
    for one in watching:
        one.cancel()
    await asyncio.gather(*watching, return_exceptions=True)
    await until(lambda: not feed._watchers)


async def until(condition: object) -> None:
    assert callable(condition)
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.02)


async def test_a_blob_is_bytes(world: World) -> None:
    data = bytes(range(256)) * 9000
    digest = await asyncio.to_thread(world.gateway.blobs.put, "default", data)
    answer = await world.get(f"/blobs/{digest}")
    assert answer.content == data
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"] == "attachment"
    assert "immutable" in answer.headers["cache-control"]
    known = {"If-None-Match": answer.headers["etag"]}
    again = await world.http.get(f"{ROOT}/blobs/{digest}", headers=known)
    assert (again.status_code, again.content) == (304, b"")
    other = await world.http.get(f"/v1/projects/other/blobs/{digest}", headers=known)
    assert other.status_code == 404
