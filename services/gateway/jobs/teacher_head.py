"""The teacher-head job: a linear classifier on a backbone's features becomes a domain teacher.

Its responses to its own training data come cross-fitted, because direct ones are nearly one-hot.
"""

from __future__ import annotations

import asyncio
import json

from stillhouse.common.v1 import items_pb2
from stillhouse.student.v1 import student_pb2

from services.common import names
from services.gateway.jobs.checks import check_head_job, read_manifest, wait_for_dataset
from services.gateway.jobs.job import Job
from services.gateway.jobs.outputs import feature_stage
from services.gateway.jobs.plans import DatasetPlan, TeacherPlan, Trained
from services.gateway.jobs.shard_stage import Shards, run_shards
from services.gateway.jobs.training import train


async def teacher_head_job(job: Job) -> dict[str, str]:
    """Run the job; return `model`."""
    dataset = await job.stage("ingest", ingest)
    backbone = await job.stage("check", check, dataset)
    shards = await job.stage("features", features, dataset, backbone)
    trained = await job.stage("fit", fit, dataset, backbone, shards)
    return await job.stage("publish", publish, dataset, backbone, trained)


async def ingest(job: Job) -> DatasetPlan:
    """Wait for the dataset's manifest."""
    return await wait_for_dataset(job, job.spec.teacher_head.dataset)


async def check(job: Job, dataset: DatasetPlan) -> TeacherPlan:
    """Refuse what cannot work before it costs anything."""
    return await check_head_job(job.tools, job.spec.teacher_head, dataset, patient=True)


async def features(job: Job, dataset: DatasetPlan, backbone: TeacherPlan) -> Shards:
    """Run the backbone once over every image."""
    manifest = await read_manifest(job.tools, job.project, dataset)
    return await run_shards(job, feature_stage(job.tools, backbone), manifest)


async def fit(job: Job, dataset: DatasetPlan, backbone: TeacherPlan, shards: Shards) -> Trained:
    """Fit the head, and the folds that give each training image a response that did not see it."""
    recipe = student_pb2.LinearHeadRecipe(
        data=student_pb2.TrainingData(
            manifest=items_pb2.BlobRef(digest=dataset["manifest"]),
            feature_shards=[items_pb2.BlobRef(digest=digest) for digest in shards["digests"]],
        ),
        backbone=names.parse(backbone["name"], "models")[1],
        backbone_digest=backbone["digest"],
        seed=job.spec.teacher_head.seed,
    )
    return await train(job, student_pb2.TrainRequest(linear_head=recipe))


async def publish(
    job: Job, dataset: DatasetPlan, backbone: TeacherPlan, trained: Trained
) -> dict[str, str]:
    """Name the head as a model of the project; the teacher service serves it from then on."""
    manifest = await read_manifest(job.tools, job.project, dataset)
    model_id = model_id_of(job)
    record = {
        "kind": "linear_head",
        "backbone": names.parse(backbone["name"], "models")[1],
        "backbone_digest": backbone["digest"],
        "head": trained["blobs"]["head"],
        "card": trained["blobs"]["card"],
        "classes": list(manifest.classes),
        "single_label": not manifest.multi_label,
        "dataset": dataset["name"],
        "dataset_manifest": dataset["manifest"],
    }
    data = json.dumps(record, sort_keys=True).encode()
    await asyncio.to_thread(job.tools.blobs.put_ref, job.project, f"models/{model_id}", data)
    return {"model": names.join(job.project, "models", model_id)}


def model_id_of(job: Job) -> str:
    """Return the last part of the new model's name."""
    spec = job.spec.teacher_head
    return spec.model_id or f"{names.parse(spec.dataset, 'datasets')[1]}-teacher"
