"""Training runs at the student service: started once, followed across restarts of either side."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc.aio
from stillhouse.common.v1 import language_pb2
from stillhouse.student.v1 import student_pb2

from services.common.channels import to_error
from services.common.errors import (
    Internal,
    NotFound,
    Overloaded,
    PeerUnavailable,
    from_status,
)
from services.gateway.jobs import records
from services.gateway.jobs.job import Job
from services.gateway.jobs.plans import Trained
from services.gateway.keys import stage_ref

_DEFAULT_EPOCHS = 3.0
_DEFAULT_BATCH = 8
_DEFAULT_REPLAY = 0.25


@dataclass(frozen=True)
class Place:
    """Which of a stage's runs a run is, where all take equally many steps."""

    index: int
    count: int
    steps: int
    """Of one run."""


def steps_of(training: language_pb2.LanguageTraining, examples: int, *, with_replay: bool) -> int:
    """Return the optimizer steps of every arm: those that go through `examples` sequences `epochs`
    times."""
    if training.max_steps:
        return training.max_steps
    share = (training.replay_share or _DEFAULT_REPLAY) if with_replay else 0.0
    batch = (training.batch_sequences or _DEFAULT_BATCH) * (1 - share)
    return max(1, math.ceil(examples * (training.epochs or _DEFAULT_EPOCHS) / batch))


async def train(
    job: Job,
    request: student_pb2.TrainRequest,
    *,
    run: str = "",
    place: Place | None = None,
    stage: str = "fit",
) -> Trained:
    """Run a recipe to its end, or find what it made before. Raises what the run failed with.

    The run's id comes from the job and the recipe, so whoever asks again attaches to it. `run`
    names it among several of one job, `stage` is the one that tells of it.
    """
    recipe = request.SerializeToString(deterministic=True)
    digest = hashlib.sha256(recipe).hexdigest()
    ref = stage_ref("fit", {"recipe": digest})
    found = await asyncio.to_thread(_find, job, ref)
    if found is not None:
        await job.progress.say(f"{stage}: {run + ' ' if run else ''}found from an earlier job")
        return found
    request.project = job.project
    request.run_id = f"{job.job_id}-{digest[:32]}"
    await job.note(run_id=request.run_id)
    result = await _follow(job, request, run, place, stage)
    trained = Trained(blobs=_digests(result))
    data = json.dumps(trained, sort_keys=True).encode()
    await asyncio.to_thread(job.tools.blobs.put_ref, job.project, ref, data)
    return trained


async def _follow(
    job: Job, request: student_pb2.TrainRequest, run: str, place: Place | None, stage: str
) -> student_pb2.TrainResult:
    """Follow the run's events; a stream that breaks is taken up after the last event seen.

    Gives up only where nothing at all came for `give_up_s`.
    """
    is_training = request.WhichOneof("recipe") in ("language", "classifier")
    unit = "batches" if request.HasField("importance") else "steps"
    steps = _Steps(total=place.steps if place else 0, even=is_training, unit=unit)

    async def attempt() -> student_pb2.TrainResult:
        peers = job.tools.peers
        try:
            stream: AsyncIterator[student_pb2.TrainResponse]
            stream = peers.stream(peers.student.Train, request, timeout_s=None)
            async for event in stream:
                request.after_sequence = max(request.after_sequence, event.sequence)
                kind = event.WhichOneof("event")
                if kind == "result":
                    return event.result
                if kind == "error":
                    raise from_status(event.error)
                await _tell(job, event.progress, run, steps, place, stage)
        except grpc.aio.AioRpcError as error:
            raise to_error(error) from None
        raise PeerUnavailable("the stream of the training run ended early")

    while True:
        before = request.after_sequence
        try:
            return await job.tools.peers.persist(attempt, what="training")
        except (PeerUnavailable, Overloaded):
            if request.after_sequence == before:
                raise


@dataclass
class _Steps:
    """The last counts of a run: what comes before and after its steps has none of its own."""

    done: int = 0
    total: int = 0
    even: bool = False
    """Whether its steps take equally long."""
    unit: str = "steps"


async def _tell(
    job: Job,
    progress: student_pb2.TrainProgress,
    run: str,
    steps: _Steps,
    place: Place | None,
    stage: str,
) -> None:
    if progress.total:
        steps.done, steps.total = progress.done, progress.total
    curve = None
    if progress.metrics:
        curve = records.Curve(dict(progress.metrics), progress.done, run)
    await job.progress.update(
        stage,
        done=steps.done + (place.index * place.steps if place else 0),
        total=place.count * place.steps if place else steps.total,
        unit=steps.unit,
        detail=f"{run}: {progress.stage}" if run else progress.stage,
        curve=curve,
        even=steps.even,
    )


def _digests(result: student_pb2.TrainResult) -> dict[str, str]:
    kind = result.WhichOneof("outcome")
    if kind == "concept":
        made = result.concept
        return {
            "weights": made.student.weights_digest,
            "card": made.student.card_digest,
            "report": made.report.digest,
        }
    if kind == "language":
        found = {"report": result.language.report.digest, "model": result.language.model.digest}
        return {name: digest for name, digest in found.items() if digest}
    if kind == "importance":
        made_of = result.importance
        return {"importance": made_of.importance.digest, "report": made_of.report.digest}
    if kind == "classifier":
        return {
            field.name: ref.digest for field, ref in result.classifier.ListFields() if ref.digest
        }
    if kind == "linear_head":
        return {"head": result.linear_head.head.digest, "card": result.linear_head.card.digest}
    raise Internal("the training run ended without a result")


def _find(job: Job, ref: str) -> Trained | None:
    try:
        kept = json.loads(job.tools.blobs.get_ref(job.project, ref))
        blobs = {str(name): str(digest) for name, digest in kept["blobs"].items()}
    except (NotFound, ValueError, KeyError, TypeError, AttributeError):
        return None
    exist = all(job.tools.blobs.exists(job.project, digest) for digest in blobs.values())
    return Trained(blobs=blobs) if blobs and exist else None
