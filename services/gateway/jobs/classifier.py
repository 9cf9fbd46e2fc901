"""The classifier job: an image classifier becomes a smaller network (Hinton et al. 2015,
arXiv 1503.02531), which learns from its outputs for augmented views and from labels.

The stages below are the method's steps. The teacher sees every view once; all arms and seeds train
on what it said. Training runs are re-attached, or found where an earlier job has made them.
"""

from __future__ import annotations

import asyncio

from stillhouse.student.v1 import student_pb2

from services.common import names
from services.common.classifier_records import ClassifierRecord
from services.gateway.jobs.checks import read_manifest, wait_for_dataset
from services.gateway.jobs.classifier_arms import Fitted, Run, arm_recipe
from services.gateway.jobs.classifier_checks import check_classifier_job, part
from services.gateway.jobs.classifier_report import make_report, read_measured
from services.gateway.jobs.classifier_specs import arms_of, augmentation_of, model_id_of, steps_of
from services.gateway.jobs.estimates import Estimate, estimate_classifier_job
from services.gateway.jobs.job import Job
from services.gateway.jobs.language_models import store_report
from services.gateway.jobs.outputs import teacher_stage, view_stage
from services.gateway.jobs.plans import ClassifierPlan, DatasetPlan
from services.gateway.jobs.shard_stage import Shards, run_shards
from services.gateway.jobs.training import Place, train


async def classifier_job(job: Job) -> dict[str, str]:
    """Run the job; return `model` and `report`."""
    dataset = await job.stage("ingest", ingest)
    plan = await job.stage("check", check, dataset)
    cost = await job.stage("estimate", estimate, plan)
    job.progress.expect(cost["stage_s"])
    outputs = await job.stage("teacher_outputs", teacher_outputs, plan)
    views = await job.stage("teacher_views", teacher_views, plan)
    fitted = await job.stage("fit", fit, plan, views)
    return await job.stage("publish", publish, plan, outputs, fitted)


async def ingest(job: Job) -> DatasetPlan:
    """Wait for the dataset's manifest."""
    return await wait_for_dataset(job, job.spec.classifier.dataset)


async def check(job: Job, dataset: DatasetPlan) -> ClassifierPlan:
    """Refuse what does not fit together before it costs anything."""
    return await check_classifier_job(job.tools, job.spec.classifier, dataset, patient=True)


async def estimate(job: Job, plan: ClassifierPlan) -> Estimate:
    """Say what is to come."""
    cost = await estimate_classifier_job(job.tools, job.project, job.spec.classifier, plan)
    await job.progress.say(
        f"estimate: {cost['items']:,} images, {cost['cached']:,} from the cache, "
        f"about {sum(cost['stage_s'].values()):.0f} s, {cost['stored_bytes'] / 1e6:.1f} MB"
    )
    return cost


async def teacher_outputs(job: Job, plan: ClassifierPlan) -> Shards:
    """Ask the teacher for its response to every test image: what the arms are compared with."""
    manifest = await read_manifest(job.tools, job.project, plan["dataset"])
    return await run_shards(job, teacher_stage(job.tools, plan["teacher"]), part(manifest, "test"))


async def teacher_views(job: Job, plan: ClassifierPlan) -> Shards:
    """Ask the teacher for its response to every view of every training image."""
    spec = job.spec.classifier
    manifest = await read_manifest(job.tools, job.project, plan["dataset"])
    views, features = augmentation_of(spec), plan["feature_dim"] > 0
    stage = view_stage(job.tools, plan["teacher"], views, features=features)
    return await run_shards(job, stage, part(manifest, "train"))


async def fit(job: Job, plan: ClassifierPlan, views: Shards) -> Fitted:
    """Train the student on every arm, with every seed, all with equally many steps."""
    spec = job.spec.classifier
    manifest = await read_manifest(job.tools, job.project, plan["dataset"])
    steps = steps_of(spec.training, len(part(manifest, "train").items) - views["invalid_count"])
    every = [(arm, seed) for arm in arms_of(spec) for seed in range(spec.training_seeds or 1)]
    runs: list[Run] = []
    for index, (arm, seed) in enumerate(every):
        recipe = arm_recipe(spec, plan, views, arm, seed, steps)
        recipe.skip_onnx = index > 0
        trained = await train(
            job,
            student_pb2.TrainRequest(classifier=recipe),
            run=f"{arm}/{seed}" if len(every) > 1 else "",
            place=Place(index, len(every), steps),
        )
        runs.append(Run(arm=arm, seed=seed, blobs=trained["blobs"]))
    return Fitted(runs=runs, steps=steps)


async def publish(
    job: Job, plan: ClassifierPlan, outputs: Shards, fitted: Fitted
) -> dict[str, str]:
    """Name the student as a model of the project, which the teacher service serves from then on,
    and report on every arm."""
    manifest = await read_manifest(job.tools, job.project, plan["dataset"])
    measured = await read_measured(job, part(manifest, "test"), outputs, fitted["runs"])
    report = await asyncio.to_thread(make_report, measured, fitted)
    card = fitted["runs"][0]["blobs"]["card"]
    record = await asyncio.to_thread(job.tools.blobs.get, job.project, card)
    ClassifierRecord.from_bytes(record)
    model_id = model_id_of(job.spec.classifier)
    await asyncio.to_thread(job.tools.blobs.put_ref, job.project, f"models/{model_id}", record)
    return {
        "model": names.join(job.project, "models", model_id),
        "report": await store_report(job, report),
    }
