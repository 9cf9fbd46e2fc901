"""Stores what a teacher predicts at every target token, shard by shard of text records.

Targets are sparse and, of the training data, unbiased: ids drawn from the teacher's distribution
(RS-KD, arXiv 2503.16870). Of the held-out data the most probable ids are kept, to measure against.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from typing import Any

from stillhouse.common.v1 import items_pb2, language_pb2
from stillhouse.teacher.v1 import teacher_pb2

from services.common.errors import Precondition
from services.gateway.jobs.found import once
from services.gateway.jobs.job import Job
from services.gateway.jobs.plans import ModelPlan, Targets
from services.gateway.jobs.shard_stage import in_flight

DEFAULT_BYTES_PER_TOKEN = 40.0
HELD_OUT_TOP_K = 64
_SHOWN = 20
_UNBIASED = (
    language_pb2.LANGUAGE_LOSS_UNSPECIFIED,
    language_pb2.LANGUAGE_LOSS_FORWARD_KL,
    language_pb2.LANGUAGE_LOSS_CROSS_ENTROPY,
)


def for_training(
    model: ModelPlan, training: language_pb2.LanguageTraining, bytes_per_token: float
) -> teacher_pb2.SampleTargetsRequest:
    """Return the request of training targets, without its records.

    Counts of draws are unbiased for KL(p || q) alone; the other losses need log-probabilities, so
    the most probable ids are kept for them. ULD sorts these, and takes the rest as zeros.
    """
    is_drawn = training.loss in _UNBIASED
    return teacher_pb2.SampleTargetsRequest(
        model=model["name"],
        kind=teacher_pb2.TARGET_KIND_SAMPLED if is_drawn else teacher_pb2.TARGET_KIND_TOP_K,
        bytes_per_token=bytes_per_token or DEFAULT_BYTES_PER_TOKEN,
        temperature=training.temperature or 1.0,
        seed=training.seed,
    )


def most_probable(model: ModelPlan) -> teacher_pb2.SampleTargetsRequest:
    """Return the request of held-out targets, without its records."""
    return teacher_pb2.SampleTargetsRequest(
        model=model["name"],
        kind=teacher_pb2.TARGET_KIND_TOP_K,
        top_k=HELD_OUT_TOP_K,
        temperature=1.0,
    )


async def store_targets(
    job: Job,
    model: ModelPlan,
    request: teacher_pb2.SampleTargetsRequest,
    shards: Sequence[str],
    *,
    sequence_length: int,
    first: int,
    total: int,
) -> Targets:
    """Ask for the targets of every shard that has none yet; `first` of `total` shards of the stage
    were done before. Raises Precondition where the teacher was replaced."""
    done = first
    hits = 0

    async def one(digest: str) -> dict[str, Any]:
        value, was_there = await _shard(job, model, request, digest, sequence_length)
        nonlocal done, hits
        done, hits = done + 1, hits + was_there
        await job.progress.update("targets", done=done, total=total, unit="shards", cache_hits=hits)
        return value

    work = [functools.partial(one, digest) for digest in shards]
    found = await in_flight(work, at_once=job.tools.settings.shards_in_flight)
    skipped = [why for one_shard in found for why in one_shard["skipped"]]
    return Targets(
        shards=[one_shard["digest"] for one_shard in found if one_shard["sequences"]],
        sequences=sum(one_shard["sequences"] for one_shard in found),
        tokens=sum(one_shard["tokens"] for one_shard in found),
        stored_bytes=sum(one_shard["bytes"] for one_shard in found),
        draws=sum(one_shard["draws"] for one_shard in found),
        skipped=skipped[:_SHOWN],
    )


def check_stored(stored: Targets) -> None:
    """Raise Precondition where no record became a sequence."""
    if not stored["sequences"]:
        why = stored["skipped"][0] if stored["skipped"] else "there is nothing to learn"
        raise Precondition(f"no record became a sequence to train on: {why}")


def target_figures(stored: Targets) -> dict[str, float]:
    """Return what a report says of stored targets."""
    tokens = max(stored["tokens"], 1)
    return {
        "tokens": stored["tokens"],
        "sequences": stored["sequences"],
        "bytes_per_token": stored["stored_bytes"] / tokens,
        "draws_per_token": stored["draws"] / tokens,
    }


def target_inputs(
    model: ModelPlan,
    request: teacher_pb2.SampleTargetsRequest,
    digest: str,
    sequence_length: int,
) -> dict[str, str | int]:
    """Return all that a shard's targets depend on; the model's name is not part of it."""
    nameless = teacher_pb2.SampleTargetsRequest()
    nameless.CopyFrom(request)
    nameless.ClearField("model")
    return _form(request) | {
        "model": model["digest"],
        "precision": model["precision"],
        "records": digest,
        "sequence_length": sequence_length,
        "request": nameless.SerializeToString(deterministic=True).hex(),
    }


async def _shard(
    job: Job,
    model: ModelPlan,
    request: teacher_pb2.SampleTargetsRequest,
    digest: str,
    sequence_length: int,
) -> tuple[dict[str, Any], bool]:
    call = teacher_pb2.SampleTargetsRequest()
    call.CopyFrom(request)
    call.text_shard.records.CopyFrom(items_pb2.BlobRef(digest=digest))
    call.text_shard.sequence_length = sequence_length
    peers = job.tools.peers

    async def ask() -> dict[str, Any]:
        started_s = time.perf_counter()
        method = peers.teacher.SampleTargets
        reply = await peers.insist(method, call, what="targets", timeout_s=peers.shard_timeout_s)
        check_same(model, reply.model_digest)
        if reply.token_count:
            spent_s = time.perf_counter() - started_s
            job.tools.item_s[model["digest"]] = spent_s / reply.token_count
        return {
            "digest": reply.blob.digest,
            "sequences": reply.sequence_count,
            "tokens": reply.token_count,
            "bytes": reply.bytes_per_token * reply.token_count,
            "draws": reply.draws_per_token * reply.token_count,
            "skipped": list(reply.skipped)[:_SHOWN],
        }

    inputs = target_inputs(model, request, digest, sequence_length)
    return await once(job.tools, job.project, "targets", inputs, ask)


def _form(request: teacher_pb2.SampleTargetsRequest) -> dict[str, str | int]:
    """Return what tells shards of the most probable ids, which name their records, from those
    that were stored before they did."""
    return {"form": 2} if request.kind == teacher_pb2.TARGET_KIND_TOP_K else {}


def check_same(model: ModelPlan, digest: str) -> None:
    """Raise Precondition where a model was replaced while the job ran."""
    if digest and digest != model["digest"]:
        raise Precondition(
            f"model {model['name']} was replaced while the job ran; start the job again",
            differences={"digest": f"{digest[:12]} instead of {model['digest'][:12]}"},
        )
