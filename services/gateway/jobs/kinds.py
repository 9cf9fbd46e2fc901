"""What creating and estimating a job needs of each kind: its check, and its cost."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from stillhouse.gateway.v1 import jobs_pb2 as pb

from services.common import names
from services.common.errors import Precondition
from services.gateway.datasets import records as datasets
from services.gateway.jobs.checks import check_concept_job, check_head_job, dataset_plan
from services.gateway.jobs.classifier_checks import check_classifier_job
from services.gateway.jobs.estimates import (
    Estimate,
    estimate_classifier_job,
    estimate_concept_job,
    estimate_head_job,
)
from services.gateway.jobs.job import Tools
from services.gateway.jobs.language_checks import (
    check_language_job,
    language_names,
    texts_now,
)
from services.gateway.jobs.language_estimates import (
    LanguageEstimate,
    estimate_language_job,
    estimate_prune_job,
    estimate_tuneshift_job,
)
from services.gateway.jobs.plans import DatasetPlan, LanguagePlan, PrunePlan, TuneShiftPlan
from services.gateway.jobs.prune_checks import check_prune_job, prune_names
from services.gateway.jobs.tuneshift_checks import check_tuneshift_job, tuneshift_names
from services.gateway.jobs.words import asked_words, filter_words

R = TypeVar("R")


async def check_now(tools: Tools, job: pb.DistillationJob) -> None:
    """Refuse at once what can be refused at once; what a dataset that is still being read decides
    is left to the job. Raises NotFound, Precondition, PeerUnavailable."""
    kind = job.WhichOneof("spec")
    if kind == "language":
        await _check_language(tools, job.language)
        return
    if kind == "tuneshift":
        await _check_tuneshift(tools, job.tuneshift)
        return
    if kind == "prune":
        await _check_prune(tools, job.prune)
        return
    if kind == "classifier":
        images = await _dataset(tools, job.classifier.dataset)
        if images is not None:
            await check_classifier_job(tools, job.classifier, images, patient=False)
        return
    spec = job.concept if kind == "concept" else job.teacher_head
    plan = await _dataset(tools, spec.dataset)
    if plan is None:
        return
    if isinstance(spec, pb.ConceptJobSpec):
        await check_concept_job(tools, spec, plan, patient=False)
    else:
        await check_head_job(tools, spec, plan, patient=False)


async def estimate_now(
    tools: Tools, project: str, job: pb.DistillationJob
) -> pb.EstimateDistillationJobResponse:
    """Return what a job would cost. Raises NotFound, Precondition, PeerUnavailable."""
    kind = job.WhichOneof("spec")
    if kind == "concept":
        return await _estimate_concept(tools, project, job.concept)
    if kind == "teacher_head":
        dataset = await _ready(tools, job.teacher_head.dataset)
        backbone = await check_head_job(tools, job.teacher_head, dataset, patient=False)
        return _of_images(await estimate_head_job(tools, project, dataset, backbone))
    if kind == "classifier":
        dataset = await _ready(tools, job.classifier.dataset)
        fits = await check_classifier_job(tools, job.classifier, dataset, patient=False)
        cost = await estimate_classifier_job(tools, project, job.classifier, fits)
        return _of_images(cost)
    if kind == "language":
        plan = _known(await _check_language(tools, job.language))
        return _of_texts(await estimate_language_job(tools, project, job.language, plan))
    if kind == "prune":
        cut = _known(await _check_prune(tools, job.prune))
        return _of_texts(await estimate_prune_job(tools, project, job.prune, cut))
    shift = _known(await _check_tuneshift(tools, job.tuneshift))
    return _of_texts(await estimate_tuneshift_job(tools, job.tuneshift, shift))


async def _check_language(tools: Tools, spec: pb.LanguageJobSpec) -> LanguagePlan | None:
    """Check a job; None where a dataset is still being read."""
    inputs = await texts_now(tools, language_names(spec))
    if inputs is None:
        return None
    return await check_language_job(tools, spec, inputs, patient=False)


async def _check_tuneshift(tools: Tools, spec: pb.TuneShiftJobSpec) -> TuneShiftPlan | None:
    """Check a job; None where a dataset is still being read."""
    inputs = await texts_now(tools, tuneshift_names(spec))
    if inputs is None:
        return None
    return await check_tuneshift_job(tools, spec, inputs, patient=False)


async def _check_prune(tools: Tools, spec: pb.PruneJobSpec) -> PrunePlan | None:
    """Check a job; None where a dataset is still being read."""
    inputs = await texts_now(tools, prune_names(spec))
    if inputs is None:
        return None
    return await check_prune_job(tools, spec, inputs, patient=False)


def _known(plan: R | None) -> R:
    if plan is None:
        raise Precondition("a dataset is still being read; try again when it is READY")
    return plan


async def _estimate_concept(
    tools: Tools, project: str, spec: pb.ConceptJobSpec
) -> pb.EstimateDistillationJobResponse:
    dataset = await _ready(tools, spec.dataset)
    plan = await check_concept_job(tools, spec, dataset, patient=False)
    kept = await filter_words(tools, plan, await asked_words(tools, project, spec))
    reply = _of_images(await estimate_concept_job(tools, project, plan, spec.control_draws))
    reply.concept_count = len(kept.kept)
    return reply


async def _dataset(tools: Tools, name: str) -> DatasetPlan | None:
    """Return a dataset of images; None where it is still being read."""
    project, dataset_id = names.parse(name, "datasets", field="dataset")
    row = await asyncio.to_thread(datasets.get, tools.store, project, dataset_id)
    return None if row.state == "CREATING" else dataset_plan(row)


async def _ready(tools: Tools, name: str) -> DatasetPlan:
    project, dataset_id = names.parse(name, "datasets", field="dataset")
    return dataset_plan(await asyncio.to_thread(datasets.get, tools.store, project, dataset_id))


def _of_images(cost: Estimate) -> pb.EstimateDistillationJobResponse:
    return pb.EstimateDistillationJobResponse(
        item_count=cost["items"],
        cached_item_count=cost["cached"],
        duration_s=sum(cost["stage_s"].values()),
        stored_bytes=cost["stored_bytes"],
    )


def _of_texts(cost: LanguageEstimate) -> pb.EstimateDistillationJobResponse:
    return pb.EstimateDistillationJobResponse(
        item_count=cost["items"],
        duration_s=sum(cost["stage_s"].values()),
        stored_bytes=cost["stored_bytes"],
    )
