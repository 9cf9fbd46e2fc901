"""What the services compute for images: teacher outputs, backbone features, region embeddings."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import numpy as np
from stillhouse.common.v1 import items_pb2
from stillhouse.concepts.v1 import concepts_pb2
from stillhouse.teacher.v1 import teacher_pb2

from services.common.augmentation import Augmentation
from services.common.errors import InvalidInput, Precondition
from services.common.manifest import Item
from services.common.shards import pack_regions, pack_rows
from services.common.tensors import Array, expect, from_message
from services.common.view_shards import ViewRow, pack_views
from services.gateway.cache import Regions
from services.gateway.jobs.job import Tools
from services.gateway.jobs.plans import EncoderPlan, TeacherPlan
from services.gateway.jobs.shard_stage import Inputs, Shard, ShardStage, reason
from services.gateway.keys import RegionSpace

R = TypeVar("R")
_REGIONS = 32
"""Regions of an image at most, to tell how large an answer will be."""
_ROW_BYTES = 8 << 10
"""Logits of a thousand classes, and features."""


def teacher_stage(tools: Tools, plan: TeacherPlan) -> ShardStage:
    """Teacher logits of every image, columns in the dataset's class order, cross-fitted where the
    teacher is a head that was trained on the image."""
    request = teacher_pb2.ClassifyRequest(
        model=plan["name"],
        outputs=[teacher_pb2.CLASSIFY_OUTPUT_LOGITS],
        execution=items_pb2.EXECUTION_SHARD,
        cross_fitted=True,
    )
    inputs: Inputs = {
        "model": plan["digest"],
        "classes": plan["classes"],
        "cross_fitted": True,
    }

    def row(answer: teacher_pb2.Classification) -> Array:
        logits = from_message(answer.logits, field="logits")
        expect(logits, shape=(len(plan["columns"]),), field="logits")
        return np.ascontiguousarray(logits[plan["columns"]], "<f4")

    return ShardStage(
        "teacher_outputs",
        inputs,
        lambda items: _classified(tools, request, items, plan["digest"], row, _rows("logits")),
    )


def view_stage(
    tools: Tools, plan: TeacherPlan, augmentation: Augmentation, *, features: bool = False
) -> ShardStage:
    """Teacher logits (and features) of augmented views of every image, columns in the dataset's
    class order. One pass serves every student that trains on these views."""
    logits, vectors = teacher_pb2.CLASSIFY_OUTPUT_LOGITS, teacher_pb2.CLASSIFY_OUTPUT_FEATURES
    request = teacher_pb2.ClassifyRequest(
        model=plan["name"],
        outputs=[logits, vectors] if features else [logits],
        execution=items_pb2.EXECUTION_SHARD,
        augmentation=items_pb2.Augmentation(
            policy=augmentation.policy, views=augmentation.views, seed=augmentation.seed
        ),
    )
    inputs: Inputs = {
        "model": plan["digest"],
        "classes": plan["classes"],
        "policy": augmentation.policy,
        "views": augmentation.views,
        "seed": augmentation.seed,
        # Over the policy's numbers too, which its name does not tell.
        "augmentation": augmentation.digest,
        "features": features,
    }

    def row(answer: teacher_pb2.Classification) -> ViewRow:
        found = from_message(answer.logits, field="logits")
        expect(found, shape=(augmentation.views, len(plan["columns"])), field="logits")
        told = from_message(answer.features, field="features") if features else None
        return ViewRow(found[:, plan["columns"]], told)

    def pack(items: Sequence[Item], rows: Sequence[ViewRow | None]) -> bytes:
        return pack_views([item.digest for item in items], rows, augmentation)

    return ShardStage(
        "teacher_views",
        inputs,
        lambda items: _classified(
            tools, request, items, plan["digest"], row, pack, passes=augmentation.views
        ),
    )


def feature_stage(tools: Tools, plan: TeacherPlan) -> ShardStage:
    """A backbone's features of every image."""
    request = teacher_pb2.ClassifyRequest(
        model=plan["name"],
        outputs=[teacher_pb2.CLASSIFY_OUTPUT_FEATURES],
        execution=items_pb2.EXECUTION_SHARD,
    )

    def row(answer: teacher_pb2.Classification) -> Array:
        return from_message(answer.features, field="features").astype("<f2", copy=False)

    return ShardStage(
        "features",
        {"model": plan["digest"]},
        lambda items: _classified(tools, request, items, plan["digest"], row, _rows("features")),
    )


def region_stage(tools: Tools, project: str, plan: EncoderPlan) -> ShardStage:
    """Region embeddings of every image: from the cache by key, else computed."""
    space = space_of(project, plan)
    inputs = {
        "encoder": plan["digest"],
        "preprocessing": plan["preprocessing_digest"],
        "regions": plan["region_digest"],
    }

    async def compute(items: Sequence[Item]) -> Shard:
        digests = [item.digest for item in items]
        found = await tools.cache.get(space, digests)
        hits = sum(one is not None for one in found)
        missing = list(
            dict.fromkeys(d for d, one in zip(digests, found, strict=True) if one is None)
        )
        fresh, invalid = await embed(tools, plan, missing) if missing else ({}, {})
        await tools.cache.put(space, fresh)
        regions = [one or fresh.get(d) for d, one in zip(digests, found, strict=True)]
        data = pack_regions([None if r is None else (r.embeddings, r.map) for r in regions])
        return Shard(data, invalid, hits)

    return ShardStage("regions", inputs, compute)


def space_of(project: str, plan: EncoderPlan) -> RegionSpace:
    """Return what the encoder's region embeddings depend on."""
    return RegionSpace(
        project, plan["digest"], plan["preprocessing_digest"], plan["region_digest"]
    ).check()


async def embed(
    tools: Tools, plan: EncoderPlan, digests: Sequence[str]
) -> tuple[dict[str, Regions], dict[str, str]]:
    """Return regions by item digest, and reasons by digest of items that have none."""
    peers = tools.peers

    async def attempt() -> tuple[dict[str, Regions], dict[str, str]]:
        regions: dict[str, Regions] = {}
        invalid: dict[str, str] = {}
        answer_bytes = _REGIONS * 2 * plan["dim"]
        for part in await peers.parts("concepts", digests, lambda _: answer_bytes):
            request = concepts_pb2.EmbedRegionsRequest(
                encoder=plan["name"],
                items=[items_pb2.ImageInput(item_id=d, digest=d) for d in part],
                execution=items_pb2.EXECUTION_SHARD,
            )
            method = peers.concepts.EmbedRegions
            reply = await peers.ask(method, request, timeout_s=peers.shard_timeout_s)
            got = (reply.encoder_digest, reply.region_digest)
            _same("encoder", plan["name"], got, (plan["digest"], plan["region_digest"]))
            for digest, result in zip(part, reply.results, strict=True):
                if result.WhichOneof("outcome") == "regions":
                    regions[digest] = _regions(result.regions, plan["dim"])
                else:
                    invalid[digest] = reason(result.error)
        return regions, invalid

    return await _timed(tools, plan["digest"], len(digests), attempt, "regions")


async def _classified(
    tools: Tools,
    request: teacher_pb2.ClassifyRequest,
    items: Sequence[Item],
    digest: str,
    row: Callable[[teacher_pb2.Classification], R],
    pack: Callable[[Sequence[Item], Sequence[R | None]], bytes],
    *,
    passes: int = 1,
) -> Shard:
    """Classify one shard; images that the teacher refuses are invalid rows."""
    peers = tools.peers

    async def attempt() -> Shard:
        rows: list[R | None] = []
        invalid: dict[str, str] = {}
        for part in await peers.parts("teacher", items, lambda _: passes * _ROW_BYTES):
            call = teacher_pb2.ClassifyRequest()
            call.CopyFrom(request)
            call.items.extend(items_pb2.ImageInput(item_id=i.digest, digest=i.digest) for i in part)
            reply = await peers.ask(peers.teacher.Classify, call, timeout_s=peers.shard_timeout_s)
            _same("teacher", request.model, (reply.model_digest,), (digest,))
            for item, result in zip(part, reply.results, strict=True):
                answered = result.WhichOneof("outcome") == "classification"
                rows.append(row(result.classification) if answered else None)
                if not answered:
                    invalid[item.digest] = reason(result.error)
        return Shard(pack(items, rows), invalid)

    return await _timed(tools, digest, len(items) * passes, attempt, "teacher outputs")


def _rows(name: str) -> Callable[[Sequence[Item], Sequence[Array | None]], bytes]:
    return lambda _, rows: pack_rows(name, rows)


async def _timed(
    tools: Tools, digest: str, count: int, attempt: Callable[[], Awaitable[R]], what: str
) -> R:
    """Run a shard's call until it answers, and note the speed of the call that did."""

    async def timed() -> R:
        started_s = time.perf_counter()
        result = await attempt()
        tools.item_s[digest] = (time.perf_counter() - started_s) / max(count, 1)
        return result

    return await tools.peers.persist(timed, what=what)


def _regions(message: concepts_pb2.Regions, dim: int) -> Regions:
    embeddings = from_message(message.embeddings, field="embeddings")
    region_map = from_message(message.map, field="map")
    expect(embeddings, shape=(None, dim), field="embeddings")
    expect(region_map, shape=(None, None), field="map")
    if not len(embeddings):
        raise InvalidInput("embeddings: an image has at least one region", field="embeddings")
    return Regions(embeddings.astype("<f2", copy=False), region_map.astype("u1", copy=False))


def _same(kind: str, name: str, got: tuple[str, ...], want: tuple[str, ...]) -> None:
    """Raise Precondition where a model was replaced while the job ran."""
    if got != want:
        raise Precondition(
            f"{kind} {name} was replaced while the job ran; start the job again",
            differences={"digest": f"{got[0][:12]} instead of {want[0][:12]}"},
        )
