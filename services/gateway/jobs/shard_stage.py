"""Runs a stage over a dataset in shards: each found where it exists, else computed and kept.

A shard's output is a blob; a ref named by the digest of all its inputs points at it. So a retry, a
second job and a job after a crash find it, and none of them depends on who computed it.
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict, TypeVar

from google.rpc import code_pb2, status_pb2

from services.common.blobs import BlobStore
from services.common.errors import InvalidInput, NotFound, from_status
from services.common.manifest import Item, Manifest
from services.common.shards import SHARD_ITEMS
from services.gateway.jobs.job import Job
from services.gateway.keys import stage_ref

R = TypeVar("R")
Inputs = Mapping[str, str | int | bool | Sequence[str]]
_SHOWN = 20
_PASSING = (code_pb2.UNAVAILABLE, code_pb2.RESOURCE_EXHAUSTED, code_pb2.DEADLINE_EXCEEDED)


@dataclass
class Shard:
    """Output of one shard: its bytes, by digest why items have no row, and how many items came from
    the cache."""

    data: bytes
    invalid: dict[str, str] = field(default_factory=dict)
    cache_hits: int = 0


class Shards(TypedDict):
    """What a sharded stage returns: blob digests in manifest order, and items without a row."""

    digests: list[str]
    invalid_count: int
    invalid: dict[str, str]


@dataclass(frozen=True)
class ShardStage:
    """A stage that runs in shards. `inputs` is all that an output depends on beside the items."""

    name: str
    inputs: Inputs
    compute: Callable[[Sequence[Item]], Awaitable[Shard]]


@dataclass(frozen=True)
class _Done:
    digest: str
    invalid: dict[str, str]


async def run_shards(job: Job, stage: ShardStage, manifest: Manifest) -> Shards:
    """Run the stage over all items. Raises InvalidInput where not one item could be used."""
    parts = split(manifest.items)
    done_count = hit_count = 0

    async def one(items: Sequence[Item]) -> _Done:
        done, hits = await _shard(job, stage, items)
        nonlocal done_count, hit_count
        done_count, hit_count = done_count + len(items), hit_count + hits
        await job.progress.update(
            stage.name,
            done=done_count,
            total=len(manifest.items),
            unit="images",
            cache_hits=hit_count,
        )
        return done

    work = [functools.partial(one, items) for items in parts]
    finished = await in_flight(work, at_once=job.tools.settings.shards_in_flight)
    reasons = {digest: why for done in finished for digest, why in done.invalid.items()}
    invalid = {i.item_id: reasons[i.digest] for i in manifest.items if i.digest in reasons}
    if len(invalid) == len(manifest.items):
        why = next(iter(invalid.values()), "the dataset is empty")
        raise InvalidInput(f"{stage.name}: none of {len(invalid):,} images could be used: {why}")
    if invalid:
        first = next(iter(invalid.items()))
        await job.progress.say(
            f"{stage.name}: {len(invalid):,} images cannot be used, first {first[0]}: {first[1]}"
        )
    shown = dict(list(invalid.items())[:_SHOWN])
    return Shards(
        digests=[done.digest for done in finished], invalid_count=len(invalid), invalid=shown
    )


async def missing_items(
    blobs: BlobStore, project: str, stage: ShardStage, manifest: Manifest
) -> list[Item]:
    """Return the items whose shards do not exist yet."""
    parts = split(manifest.items)
    found = await asyncio.to_thread(lambda: [_find(blobs, project, stage, part) for part in parts])
    pairs = zip(parts, found, strict=True)
    return [item for part, done in pairs if done is None for item in part]


def split(items: Sequence[Item]) -> list[Sequence[Item]]:
    """Return the items in shards, in order."""
    return [items[at : at + SHARD_ITEMS] for at in range(0, len(items), SHARD_ITEMS)]


async def in_flight(
    work: Sequence[Callable[[], Coroutine[Any, Any, R]]], *, at_once: int
) -> list[R]:
    """Run the work in order, `at_once` at a time; where one fails the others are stopped."""
    slots = asyncio.Semaphore(at_once)

    async def run(start: Callable[[], Coroutine[Any, Any, R]]) -> R:
        async with slots:
            return await start()

    tasks = [asyncio.create_task(run(start)) for start in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def reason(status: status_pb2.Status) -> str:
    """Return why an item failed. Raises where it was the service, so that the shard is retried."""
    if status.code in _PASSING:
        raise from_status(status)
    return str(status.message) or f"status {status.code}"


async def _shard(job: Job, stage: ShardStage, items: Sequence[Item]) -> tuple[_Done, int]:
    """Return a shard and how many of its items cost nothing."""
    found = await asyncio.to_thread(_find, job.tools.blobs, job.project, stage, items)
    if found is not None:
        return found, len(items)
    shard = await stage.compute(items)
    done = await asyncio.to_thread(_keep, job, stage, items, shard)
    return done, shard.cache_hits


def _find(blobs: BlobStore, project: str, stage: ShardStage, items: Sequence[Item]) -> _Done | None:
    try:
        kept = json.loads(blobs.get_ref(project, _ref(stage, items)))
        done = _Done(str(kept["digest"]), dict(kept["invalid"]))
        return done if blobs.exists(project, done.digest) else None
    except (NotFound, ValueError, KeyError, TypeError):
        return None


def _keep(job: Job, stage: ShardStage, items: Sequence[Item], shard: Shard) -> _Done:
    digest = job.tools.blobs.put(job.project, shard.data)
    text = json.dumps({"digest": digest, "invalid": shard.invalid}, sort_keys=True)
    job.tools.blobs.put_ref(job.project, _ref(stage, items), text.encode())
    return _Done(digest, shard.invalid)


def _ref(stage: ShardStage, items: Sequence[Item]) -> str:
    return stage_ref(stage.name, {**stage.inputs, "items": [item.digest for item in items]})
