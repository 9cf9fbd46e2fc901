"""The cuts a prune job chooses from: what is asked of the importance recipe, and what it found."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from stillhouse.gateway.v1 import jobs_pb2 as pb
from stillhouse.student.v1 import student_pb2

from services.common import names
from services.common.errors import Internal, Precondition
from services.gateway.jobs.job import Job
from services.gateway.jobs.language_models import origin
from services.gateway.jobs.plans import (
    PruneCandidate,
    PruneCuts,
    PrunePlan,
    PruneRound,
    Trained,
)
from services.gateway.jobs.prune_specs import KINDS, parameters_of, rounds_of, size_of
from services.gateway.jobs.text_data import blob_refs

_PER_KIND = 3
_SIZES = ("layers", "hidden_size", "intermediate_size", "attention_heads")


def importance_recipe(
    spec: pb.PruneJobSpec, plan: PrunePlan, texts: Sequence[str], rounds: Sequence[PruneRound]
) -> student_pb2.ImportanceRecipe:
    """Return the recipe that measures importance and searches shapes: of what the last of the
    `rounds` made, an even step of the rounds to come towards the size."""
    field, value = size_of(spec)
    recipe = student_pb2.ImportanceRecipe(
        student=names.parse(plan["model"]["name"], "models")[1],
        text_shards=blob_refs(texts),
        sequence_length=plan["sequence_length"],
        tokenizer_digest=plan["model"]["tokenizer_digest"],
        max_sequences=spec.calibration_sequences,
        max_candidates=max(spec.candidates, _PER_KIND),
        provenance=origin("prune", model=plan["model"], dataset=plan["inputs"]["dataset"]),
    )
    setattr(recipe.budget, field, value)
    recipe.budget.precision = spec.training.precision
    left = rounds_of(spec) - len(rounds)
    recipe.budget.rounds = left if left > 1 else 0
    if rounds:
        recipe.student = rounds[-1]["model"]
        recipe.provenance["round"] = str(len(rounds) + 1)
        if field == "non_embedding_share":
            recipe.budget.share_of_parameters = rounds[0]["cuts"]["whole_parameters"]
    return recipe


async def cuts_of(job: Job, measured: Trained, rounds: Sequence[PruneRound]) -> PruneCuts:
    """Return the candidates that cut what may be cut, the likeliest first.

    Raises Precondition where there is none, or would be none in the last round, Internal where the
    report is none of importance.
    """
    digest = measured["blobs"]["report"]
    data = await asyncio.to_thread(job.tools.blobs.get, job.project, digest)
    try:
        report = json.loads(data)
        whole = _whole(report, rounds)
        found = [_candidate(one, whole, _kept_so_far(rounds)) for one in report["candidates"]]
        reachable = [str(kind) for kind in report.get("reachable", KINDS[pb.PRUNE_AXES_BOTH])]
    except (ValueError, KeyError, TypeError, IndexError):
        raise Internal("the report of the importance is not as agreed") from None
    kinds = KINDS[job.spec.prune.axes]
    kept = [one for one in found if one["kind"] in kinds]
    if not kept or not set(kinds) & set(reachable):
        there = [one["kind"] for one in found if one["kind"] in reachable]
        raise Precondition(_nothing(job.spec.prune, there))
    return PruneCuts(
        model=rounds[-1]["model"] if rounds else "",
        importance=measured["blobs"]["importance"],
        report=digest,
        whole_parameters=whole,
        candidates=kept,
    )


def small_enough(spec: pb.PruneJobSpec, rounds: Sequence[PruneRound]) -> PruneCuts | None:
    """Return cuts that cut nothing where the last of the `rounds` has reached the size already, as
    coarse steps may, and None where it has not."""
    if not rounds:
        return None
    cuts, number = rounds[-1]["cuts"], rounds[-1]["choice"]["number"]
    chosen, most = cuts["candidates"][number], parameters_of(spec)
    shape = chosen["shape"]
    if most is None:
        within = shape["non_embedding_parameters"] <= int(
            size_of(spec)[1] * cuts["whole_parameters"]
        )
    else:
        within = shape["parameters"] <= most
    if not within:
        return None
    return {**cuts, "model": rounds[-1]["model"], "importance": "", "candidates": [chosen]}


def shape_of(candidate: PruneCandidate) -> student_pb2.PrunedShape:
    """Return a candidate's sizes as a cut has them; which layers stay is left to the importance."""
    shape = student_pb2.PrunedShape()
    for name in _SIZES:
        setattr(shape, name, candidate["shape"][name])
    return shape


def of_whole_model(cuts: PruneCuts, rounds: Sequence[PruneRound]) -> PruneCuts:
    """Return the same candidates as cuts of the whole model."""
    return {**rounds[0]["cuts"], "candidates": cuts["candidates"]} if rounds else cuts


def said_of(cuts: PruneCuts, number: int, count: int) -> str:
    """Return what round `number` of `count` has found, for people; and how, where the likeliest is
    a large cut."""
    first = cuts["candidates"][0]
    shape, share = first["shape"], first["non_embedding_share"]
    which = f"round {number} of {count}, " if count > 1 else ""
    text = (
        f"importance: {which}{len(cuts['candidates'])} cuts of this size; the likeliest has "
        f"{shape['layers']} layers, hidden size {shape['hidden_size']}, "
        f"{shape['intermediate_size']} neurons, {shape['attention_heads']} heads"
    )
    if first["latency_ms"] is not None:
        text += f", {first['latency_ms']:.3g} ms a pass"
    if len(first["rounds"]) > 1 and count == 1:
        steps = ", ".join(f"{one:.2f}" for one in first["rounds"])
        text += f"; {share:.2f} is a large cut: `rounds`, to {steps}, may lose less"
    return text


def _whole(report: dict[str, Any], rounds: Sequence[PruneRound]) -> int:
    """Return the parameters outside the embeddings of the whole model."""
    if rounds:
        return rounds[0]["cuts"]["whole_parameters"]
    return int(report["shape"]["non_embedding_parameters"])


def _kept_so_far(rounds: Sequence[PruneRound]) -> list[int]:
    """Return the whole model's layers that are left; empty where none was cut yet."""
    if not rounds:
        return []
    cuts, number = rounds[-1]["cuts"], rounds[-1]["choice"]["number"]
    return cuts["candidates"][number]["kept_layers"]


def _candidate(raw: dict[str, Any], whole: int, kept: Sequence[int]) -> PruneCandidate:
    layers = [int(at) for at in raw["kept_layers"]]
    return PruneCandidate(
        kind=str(raw["kind"]),
        shape=dict(raw["shape"]),
        kept_layers=[kept[at] for at in layers] if kept else layers,
        prior_cost=float(raw["prior_cost"]),
        non_embedding_share=raw["shape"]["non_embedding_parameters"] / whole,
        rounds=list(raw["rounds"]),
        latency_ms=float(raw["latency_ms"]) if "latency_ms" in raw else None,
    )


def _nothing(spec: pb.PruneJobSpec, kinds: Sequence[str]) -> str:
    axes = pb.PruneAxes.Name(spec.axes).removeprefix("PRUNE_AXES_").lower()
    others = ", ".join(dict.fromkeys(kinds)) or "nothing"
    field, value = size_of(spec)
    return f"{field} {value:,g} cannot be reached by cutting {axes} alone; {others} would do"
