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
from services.gateway.jobs.plans import PruneCandidate, PruneCuts, PrunePlan, Trained
from services.gateway.jobs.prune_specs import KINDS, size_of
from services.gateway.jobs.text_data import blob_refs

_PER_KIND = 3
_SIZES = ("layers", "hidden_size", "intermediate_size", "attention_heads")


def importance_recipe(
    spec: pb.PruneJobSpec, plan: PrunePlan, texts: Sequence[str]
) -> student_pb2.ImportanceRecipe:
    """Return the recipe that measures importance and searches shapes within the size."""
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
    return recipe


async def cuts_of(job: Job, measured: Trained) -> PruneCuts:
    """Return the candidates that cut what may be cut, the likeliest first.

    Raises Precondition where there is none, Internal where the report is none of importance.
    """
    digest = measured["blobs"]["report"]
    data = await asyncio.to_thread(job.tools.blobs.get, job.project, digest)
    try:
        found = [_candidate(one) for one in json.loads(data)["candidates"]]
    except (ValueError, KeyError, TypeError):
        raise Internal("the report of the importance is not as agreed") from None
    kinds = KINDS[job.spec.prune.axes]
    kept = [one for one in found if one["kind"] in kinds]
    if not kept:
        raise Precondition(_nothing(job.spec.prune, [one["kind"] for one in found]))
    importance = measured["blobs"]["importance"]
    return PruneCuts(importance=importance, report=digest, candidates=kept)


def shape_of(candidate: PruneCandidate) -> student_pb2.PrunedShape:
    """Return a candidate's sizes as a cut has them; which layers stay is left to the importance."""
    shape = student_pb2.PrunedShape()
    for name in _SIZES:
        setattr(shape, name, candidate["shape"][name])
    return shape


def said_of(cuts: PruneCuts) -> str:
    """Return what was found, for people; and how, where the likeliest is a large cut."""
    first = cuts["candidates"][0]
    shape, share = first["shape"], first["non_embedding_share"]
    text = (
        f"importance: {len(cuts['candidates'])} cuts of this size; the likeliest has "
        f"{shape['layers']} layers, hidden size {shape['hidden_size']}, "
        f"{shape['intermediate_size']} neurons, {shape['attention_heads']} heads"
    )
    if first["latency_ms"] is not None:
        text += f", {first['latency_ms']:.3g} ms a pass"
    if len(first["rounds"]) > 1:
        steps = ", ".join(f"{one:.2f}" for one in first["rounds"])
        text += f"; {share:.2f} is a large cut: several jobs, to {steps}, may lose less"
    return text


def _candidate(raw: dict[str, Any]) -> PruneCandidate:
    return PruneCandidate(
        kind=str(raw["kind"]),
        shape=dict(raw["shape"]),
        kept_layers=list(raw["kept_layers"]),
        prior_cost=float(raw["prior_cost"]),
        non_embedding_share=float(raw["non_embedding_share"]),
        rounds=list(raw["rounds"]),
        latency_ms=float(raw["latency_ms"]) if "latency_ms" in raw else None,
    )


def _nothing(spec: pb.PruneJobSpec, kinds: Sequence[str]) -> str:
    axes = pb.PruneAxes.Name(spec.axes).removeprefix("PRUNE_AXES_").lower()
    others = ", ".join(dict.fromkeys(kinds)) or "nothing"
    field, value = size_of(spec)
    return f"{field} {value:,g} cannot be reached by cutting {axes} alone; {others} would do"
