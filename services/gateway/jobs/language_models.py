"""What language and tuneshift jobs do alike with models: a recipe's frame, publishing, reports."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from stillhouse.common.v1 import language_pb2
from stillhouse.student.v1 import student_pb2

from services.common import names
from services.common.errors import Internal
from services.common.model_records import LanguageModelRecord
from services.gateway.jobs.intervals import by_dataset, difference, estimate, table
from services.gateway.jobs.job import Job
from services.gateway.jobs.plans import DatasetPlan, ModelPlan, Trained
from services.gateway.jobs.text_data import dataset_prefix


def frame(
    student: ModelPlan,
    training: language_pb2.LanguageTraining,
    sequence_length: int,
    evaluation: student_pb2.LanguageEvaluation,
    provenance: dict[str, str],
) -> student_pb2.LanguageRecipe:
    """Return a recipe without its data: digests and settings alone, so that the same inputs give
    the same one."""
    recipe = student_pb2.LanguageRecipe(
        student=names.parse(student["name"], "models")[1],
        training=training,
        evaluation=evaluation,
        tokenizer_digest=student["tokenizer_digest"],
        provenance={"student_digest": student["digest"], **provenance},
    )
    recipe.training.sequence_length = sequence_length
    return recipe


def origin(kind: str, **parts: ModelPlan | DatasetPlan | None) -> dict[str, str]:
    """Return the provenance of models and datasets: their names and digests."""
    found = {"kind": kind}
    for role, part in parts.items():
        if part is None or not part["name"]:
            continue
        found[role] = part["name"]
        digest = part.get("digest") or part.get("manifest")
        found[f"{role}_digest"] = str(digest)
    return found


async def read_report(
    job: Job, trained: Trained, datasets: Sequence[DatasetPlan]
) -> dict[str, Any]:
    """Return the report of a training run, with measures of each of the `datasets` where several
    were measured. Raises Internal where it is none."""
    data = await asyncio.to_thread(job.tools.blobs.get, job.project, trained["blobs"]["report"])
    try:
        found = json.loads(data)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Internal("the report of the training run is not JSON")
    prefixes = [dataset_prefix(one) for one in datasets]
    await asyncio.to_thread(add_datasets, found, prefixes)  # a bootstrap: too long for the loop
    return found


def add_datasets(report: dict[str, Any], prefixes: Sequence[str]) -> None:
    """Add measures of single datasets to a report, as `{dataset}/{metric}`."""
    items = report.get("items", {})
    for when, measured in items.items():
        items[when] = by_dataset(measured, prefixes)
        for name in set(items[when]) - set(measured):
            report.setdefault(when, {})[name] = estimate(table([items[when][name]]))
    before, after = items.get("before", {}), items.get("after", {})
    for name in set(before) & set(after):
        if "/" in name:
            gap = difference(table([after[name]]), table([before[name]]))
            report.setdefault("change", {})[name] = gap


async def publish_model(job: Job, model_id: str, trained: Trained) -> str:
    """Name what a run trained as a model of the project; return its resource name."""
    digest = trained["blobs"].get("model")
    if not digest:
        raise Internal("the training run made no model")
    data = await asyncio.to_thread(job.tools.blobs.get, job.project, digest)
    LanguageModelRecord.from_bytes(data)
    await asyncio.to_thread(job.tools.blobs.put_ref, job.project, f"models/{model_id}", data)
    return names.join(job.project, "models", model_id)


async def store_report(job: Job, report: dict[str, Any]) -> str:
    """Store a job's report and return its digest."""
    data = json.dumps(report, sort_keys=True, ensure_ascii=False).encode()
    return await asyncio.to_thread(job.tools.blobs.put, job.project, data)
