"""What a prune job trains and measures on: shards of its datasets' texts."""

from __future__ import annotations

from stillhouse.student.v1 import student_pb2

from services.common.errors import Precondition
from services.gateway.jobs.job import Job
from services.gateway.jobs.plans import LanguageData, PrunePlan
from services.gateway.jobs.text_data import (
    Measured,
    evaluation_of,
    held_out,
    is_trainable,
    measured_datasets,
    shards_of,
)
from services.gateway.jobs.training import steps_of


async def training_shards(job: Job, plan: PrunePlan) -> list[str]:
    """Return the shards of the records to train on. Raises Precondition where there are none."""
    dataset = plan["inputs"]["dataset"]
    assert dataset is not None
    found = await shards_of(job.tools, job.project, dataset, "train", is_trainable)
    if not found:
        raise Precondition(f"dataset {dataset['name']} has no train record with text")
    return found


async def measured_shards(job: Job, plan: PrunePlan) -> Measured:
    """Return the shards of all held-out records, by what is measured on them."""
    spec = job.spec.prune
    verifier = spec.verifier if spec.HasField("verifier") else None
    datasets = measured_datasets(plan["inputs"])
    return await held_out(job.tools, job.project, datasets, verifier, chat=False)


def exam_of(
    job: Job, measured: Measured, data: LanguageData | None = None
) -> student_pb2.LanguageEvaluation:
    """Return all that a model is measured on, beside the teacher where its targets are given."""
    spec, held = job.spec.prune, data["held_out"] if data else None
    verifier = spec.verifier if spec.HasField("verifier") else None
    return evaluation_of(measured, held["shards"] if held else [], verifier, spec.sampling)


def steps_for(job: Job, data: LanguageData) -> int:
    """Return the optimizer steps of every arm."""
    assert data["targets"] is not None
    return steps_of(job.spec.prune.training, data["targets"]["sequences"], with_replay=False)
