"""Shards: found where they exist, computed once, in order, and honest about items without a row."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from google.rpc import status_pb2

from services.common.blobs import digest_of
from services.common.errors import InvalidInput, PeerUnavailable
from services.common.manifest import Item, Manifest
from services.common.shards import pack_rows, unpack_rows
from services.gateway.jobs import records
from services.gateway.jobs.job import Job, Tools
from services.gateway.jobs.shard_stage import (
    Shard,
    ShardStage,
    in_flight,
    missing_items,
    reason,
    run_shards,
)
from tests.gateway.stories import close, create, make_tools


def manifest_of(count: int, prefix: str = "") -> Manifest:
    items = tuple(
        Item(f"{prefix}{n}.jpg", digest_of(str(n).encode()), "train", (0,)) for n in range(count)
    )
    return Manifest(("a",), False, items)


class Model:
    """Computes a row per item from its digest; refuses `bad` items, and counts its calls."""

    def __init__(self, bad: Sequence[str] = ()) -> None:
        self.bad, self.calls, self.at_once, self.most = set(bad), 0, 0, 0

    async def __call__(self, items: Sequence[Item]) -> Shard:
        self.calls += 1
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        await asyncio.sleep(0.01)
        self.at_once -= 1
        rows = [
            None if i.digest in self.bad else np.array([int(i.digest[:4], 16)], "<f4")
            for i in items
        ]
        return Shard(
            pack_rows("logits", rows),
            {i.digest: "cannot be decoded" for i in items if i.digest in self.bad},
        )

    def stage(self, name: str = "teacher_outputs", model: str = "m") -> ShardStage:
        return ShardStage(name, {"model": model}, self)


@pytest.fixture
async def job(tmp_path: Path) -> AsyncIterator[Job]:
    tools: Tools = make_tools(tmp_path)
    row = create(tools)
    made = Job(tools, row, records.spec_of(row))
    for stage in ("teacher_outputs", "regions"):
        await made.progress.begin(stage)
    yield made
    await close(tools)


async def test_shards_come_in_order_and_are_computed_once(job: Job) -> None:
    model, manifest = Model(), manifest_of(150)
    first = await run_shards(job, model.stage(), manifest)
    assert (model.calls, model.most) == (3, 2)
    rows, valid = unpack_rows(
        "logits", [job.tools.blobs.get("default", digest) for digest in first["digests"]]
    )
    assert valid.all()
    assert rows[:, 0].tolist() == [int(item.digest[:4], 16) for item in manifest.items]
    again = await run_shards(job, model.stage(), manifest_of(150, "other-name-"))
    assert again == first
    assert model.calls == 3
    event = records.last_event(job.tools.store, job.pk)
    assert event is not None
    await run_shards(job, model.stage(model="another"), manifest)
    await run_shards(job, model.stage(name="regions"), manifest)
    assert model.calls == 9


async def test_a_lost_blob_is_computed_again(job: Job, tmp_path: Path) -> None:
    model, manifest = Model(), manifest_of(64)
    first = await run_shards(job, model.stage(), manifest)
    (blob,) = (tmp_path / "blobs").rglob(first["digests"][0])
    blob.unlink()
    assert len(await missing_items(job.tools.blobs, "default", model.stage(), manifest)) == 64
    assert await run_shards(job, model.stage(), manifest) == first
    assert model.calls == 2
    assert not await missing_items(job.tools.blobs, "default", model.stage(), manifest)


async def test_bad_items_are_rows_without_values_and_are_reported(job: Job) -> None:
    manifest = manifest_of(70)
    bad = [manifest.items[3].digest, manifest.items[68].digest]
    done = await run_shards(job, Model(bad).stage(), manifest)
    assert done["invalid"] == {"3.jpg": "cannot be decoded", "68.jpg": "cannot be decoded"}
    _, valid = unpack_rows("logits", [job.tools.blobs.get("default", d) for d in done["digests"]])
    assert np.flatnonzero(~valid).tolist() == [3, 68]
    told = [event.message for event in records.events(job.tools.store, job.pk, 0)]
    assert any("2 images cannot be used" in message and "3.jpg" in message for message in told)
    assert await run_shards(job, Model().stage(), manifest) == done


async def test_a_stage_without_one_good_item_fails_and_says_why(job: Job) -> None:
    manifest = manifest_of(5)
    with pytest.raises(InvalidInput, match="none of 5 images could be used: cannot be decoded"):
        await run_shards(job, Model([i.digest for i in manifest.items]).stage(), manifest)


async def test_work_in_flight_stops_where_one_part_fails() -> None:
    started, ended = [], []

    async def part(number: int) -> int:
        started.append(number)
        if number == 1:
            raise PeerUnavailable("away")
        await asyncio.sleep(5)
        ended.append(number)
        return number

    async with asyncio.timeout(2):
        with pytest.raises(PeerUnavailable):
            await in_flight([lambda n=n: part(n) for n in range(4)], at_once=2)
    assert started[:2] == [0, 1]
    assert not ended


def test_a_service_that_is_away_is_no_fault_of_the_image() -> None:
    with pytest.raises(PeerUnavailable):
        reason(status_pb2.Status(code=14, message="away"))
    assert reason(status_pb2.Status(code=3, message="not an image")) == "not an image"
