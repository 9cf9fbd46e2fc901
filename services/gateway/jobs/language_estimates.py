"""What a language, tuneshift or prune job would cost: from the speed of a measured forward pass."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from typing import TypedDict

from stillhouse.common.v1 import language_pb2
from stillhouse.gateway.v1 import jobs_pb2 as pb
from stillhouse.teacher.v1 import teacher_pb2

from services.common.errors import Precondition, Unsupported
from services.common.texts import TextManifest, TextRecord, unpack_records
from services.gateway.jobs.answers import prompt_of
from services.gateway.jobs.job import Tools
from services.gateway.jobs.plans import (
    DatasetPlan,
    LanguagePlan,
    ModelPlan,
    PrunePlan,
    TuneShiftPlan,
)
from services.gateway.jobs.prune_specs import (
    DEFAULT_CALIBRATION,
    correction_of,
    parameters_of,
    ranking_steps_of,
    rounds_of,
    runs_of,
    size_of,
)
from services.gateway.jobs.targets import DEFAULT_BYTES_PER_TOKEN
from services.gateway.jobs.training import steps_of
from services.gateway.jobs.tuneshift_specs import arms_of, prompts_of
from services.gateway.jobs.tuneshift_specs import rounds_of as tuneshift_rounds_of

_SAMPLE = 8
_SAMPLE_CHARS = 2_000
_CHARS_PER_TOKEN = 4.0
_GENERATE = 5.0
"""Time of a generated token over that of a scored one; measured on 2 cores at batch 16."""
_TRAIN = 4.0
"""Time of a trained token over that of a scored one: forward, backward and optimizer."""
_GUESSED_TOKEN_S = 1e-3
_LOAD_S = 5.0
_DEFAULT_EPOCHS = 3.0
_DEFAULT_BATCH = 8
_DEFAULT_ANSWER = 128


class LanguageEstimate(TypedDict):
    """What a job would cost."""

    items: int
    tokens: int
    stage_s: dict[str, float]
    stored_bytes: int


async def estimate_language_job(
    tools: Tools, project: str, spec: pb.LanguageJobSpec, plan: LanguagePlan
) -> LanguageEstimate:
    """Estimate a language job; measures one forward pass of a model whose speed is unknown."""
    dataset = plan["inputs"]["dataset"]
    assert dataset is not None
    sample, count = await _sample(tools, project, dataset)
    measured = plan["teacher"] if plan["teacher"]["name"] else plan["student"]
    token_s, tokens_each = await token_speed(tools, measured, sample)
    tokens = round(count * tokens_each)
    stage_s: dict[str, float] = {}
    stored = 0
    if plan["mode"] == "stored_targets":
        stage_s["targets"] = tokens * token_s
        stored = round(tokens * (spec.bytes_per_token or DEFAULT_BYTES_PER_TOKEN))
    if plan["mode"] == "sequence_level":
        answer = spec.sampling.max_tokens or _DEFAULT_ANSWER
        tokens = count * (spec.answers_per_prompt or 1) * answer
        stage_s["answers"] = tokens * token_s * _GENERATE
    trained = trained_tokens(spec.training, tokens, max(count, 1))
    on_policy = 1 + _GENERATE if plan["mode"] == "on_policy" else 1.0
    stage_s["fit"] = _LOAD_S + trained * token_s * _TRAIN * on_policy
    return LanguageEstimate(items=count, tokens=tokens, stage_s=stage_s, stored_bytes=stored)


async def estimate_tuneshift_job(
    tools: Tools, spec: pb.TuneShiftJobSpec, plan: TuneShiftPlan
) -> LanguageEstimate:
    """Estimate a tuneshift job, as if every round were full and half of it kept."""
    sample = [TextRecord(str(at), text=seed) for at, seed in enumerate(spec.seed_prompts)]
    token_s, _ = await token_speed(tools, plan["tuned"], sample[:_SAMPLE])
    count = tuneshift_rounds_of(spec) * prompts_of(spec)
    answer = spec.sampling.max_tokens or _DEFAULT_ANSWER
    tokens = count * answer
    if spec.token_budget:
        tokens = min(tokens, spec.token_budget)
    kept = min(count / 2, spec.target_examples or math.inf)
    trained = trained_tokens(spec.training, round(kept * answer), max(round(kept), 1))
    runs = len(arms_of(spec)) * (spec.training_seeds or 1)
    return LanguageEstimate(
        items=count,
        tokens=tokens,
        stage_s={
            "rounds": tokens * token_s * (_GENERATE + 2),
            "fit": runs * (_LOAD_S + trained * token_s * _TRAIN),
        },
        stored_bytes=round(count * answer * _CHARS_PER_TOKEN * 2),
    )


async def estimate_prune_job(
    tools: Tools, project: str, spec: pb.PruneJobSpec, plan: PrunePlan
) -> LanguageEstimate:
    """Estimate a prune job; a trained token of the cut costs as much less as it is smaller."""
    dataset = plan["inputs"]["dataset"]
    assert dataset is not None
    sample, count = await _sample(tools, project, dataset)
    token_s, tokens_each = await token_speed(tools, plan["model"], sample)
    tokens = round(count * tokens_each)
    calibration = (spec.calibration_sequences or DEFAULT_CALIBRATION) * plan["sequence_length"]
    step_s = token_s * _TRAIN * _share(spec, plan["model"])
    step_s += token_s if spec.training.intermediate_states else 0.0  # the whole model's pass
    trained = trained_tokens(spec.training, tokens, max(count, 1))
    steps = steps_of(spec.training, count, with_replay=False)
    rounds, seeds = rounds_of(spec), spec.training_seeds or 1
    runs = len(runs_of(spec)) - seeds + seeds / rounds
    importance_s = _LOAD_S + min(calibration, tokens) * token_s
    stage_s = {
        "importance": importance_s,
        "targets": tokens * token_s,
        "fit": _LOAD_S + len(runs_of(spec)) * _LOAD_S + runs * trained * step_s,
    }
    if rounds > 1:  # between whole and cut; importance is measured again after each
        round_s = trained / rounds * (step_s + token_s * _TRAIN) / 2
        stage_s["rounds"] = (rounds - 1) * (_LOAD_S + round_s + importance_s)
    if spec.correct_teacher:
        learned = trained_tokens(correction_of(spec), tokens, max(count, 1))
        stage_s["correct"] = _LOAD_S + learned * token_s * _TRAIN
    if spec.candidates > 1:
        short = trained * ranking_steps_of(spec, max(steps // rounds, 1)) / steps
        stage_s["rank"] = rounds * spec.candidates * (_LOAD_S + short * step_s)
    stored = round(tokens * (spec.bytes_per_token or DEFAULT_BYTES_PER_TOKEN))
    return LanguageEstimate(items=count, tokens=tokens, stage_s=stage_s, stored_bytes=stored)


async def token_speed(
    tools: Tools, model: ModelPlan, sample: Sequence[TextRecord]
) -> tuple[float, float]:
    """Return seconds per scored token of a model, and tokens per record of the sample.

    A model that scores nothing, behind another server, is guessed.
    """
    request = teacher_pb2.ScoreRequest(
        model=model["name"],
        items=[
            teacher_pb2.ScoreItem(
                item_id=str(at),
                prompt=prompt_of("\n", chat=False),
                text=(record.text or record.prompt + record.answer)[:_SAMPLE_CHARS],
            )
            for at, record in enumerate(sample)
        ],
    )
    peers = tools.peers
    started_s = time.perf_counter()
    try:
        reply = await peers.insist(
            peers.teacher.Score, request, what="estimate", timeout_s=peers.shard_timeout_s
        )
    except (Precondition, Unsupported):
        chars = sum(len(record.text or record.prompt + record.answer) for record in sample)
        return _GUESSED_TOKEN_S, chars / _CHARS_PER_TOKEN / max(len(sample), 1)
    spent_s = time.perf_counter() - started_s
    counts = [r.score.token_count for r in reply.results if r.WhichOneof("outcome") == "score"]
    tokens = sum(counts) or 1
    if not tools.item_s.get(model["digest"]):
        tools.item_s[model["digest"]] = spent_s / tokens
    return tools.item_s[model["digest"]], tokens / max(len(counts), 1)


def trained_tokens(training: language_pb2.LanguageTraining, tokens: int, sequences: int) -> float:
    """Return the tokens that training goes through, by steps or by epochs."""
    if training.max_steps:
        batch = training.batch_sequences or _DEFAULT_BATCH
        return training.max_steps * batch * tokens / sequences
    return tokens * (training.epochs or _DEFAULT_EPOCHS)


def _share(spec: pb.PruneJobSpec, model: ModelPlan) -> float:
    """Return the size asked for as a share of the model's; 1 where that is not known."""
    field, value = size_of(spec)
    if field == "non_embedding_share":
        return value
    most, whole = parameters_of(spec), model["parameter_count"]
    return min(most / whole, 1.0) if most is not None and whole else 1.0


async def _sample(tools: Tools, project: str, dataset: DatasetPlan) -> tuple[list[TextRecord], int]:
    """Return the first records of the train split, and how many it has."""

    def work() -> tuple[list[TextRecord], int]:
        data = tools.blobs.get(project, dataset["manifest"])
        manifest = TextManifest.from_bytes(data)
        shards = manifest.of("train")
        records = unpack_records(tools.blobs.get(project, shards[0].digest)) if shards else []
        return records[:_SAMPLE], manifest.count("train")

    return await asyncio.to_thread(work)
