"""The concept job (InFiConD, arXiv 2406.17838): an image classifier becomes a sparse linear student
over named visual concepts, which a person can read and tune.

The stages below are the method's steps. Each is recorded, finds what exists already, and may be
killed at any moment; the student's weights come out the same.
"""

from __future__ import annotations

import asyncio

from stillhouse.common.v1 import items_pb2
from stillhouse.gateway.v1 import jobs_pb2
from stillhouse.student.v1 import student_pb2

from services.common import names
from services.gateway import students
from services.gateway.jobs.checks import check_concept_job, read_manifest, wait_for_dataset
from services.gateway.jobs.estimates import Estimate, estimate_concept_job
from services.gateway.jobs.job import Job, together
from services.gateway.jobs.outputs import region_stage, teacher_stage
from services.gateway.jobs.plans import ConceptPlan, DatasetPlan, Trained, Words
from services.gateway.jobs.shard_stage import Shards, run_shards
from services.gateway.jobs.training import train
from services.gateway.jobs.words import prepare_words


async def concept_job(job: Job) -> dict[str, str]:
    """Run the job; return `student_version` and `report`."""
    dataset = await job.stage("ingest", ingest)
    plan = await job.stage("check", check, dataset)
    cost = await job.stage("estimate", estimate, plan)
    job.progress.expect(cost["stage_s"])
    outputs, regions = await together(
        job.stage("teacher_outputs", teacher_outputs, plan),
        job.stage("regions", embed_regions, plan),
    )
    words = await job.stage("concepts", concepts, plan)
    trained = await job.stage("fit", fit, plan, outputs, regions, words)
    return await job.stage("publish", publish, plan, trained)


async def ingest(job: Job) -> DatasetPlan:
    """Wait for the dataset's manifest."""
    return await wait_for_dataset(job, job.spec.concept.dataset)


async def check(job: Job, dataset: DatasetPlan) -> ConceptPlan:
    """Refuse what does not fit together before it costs anything."""
    return await check_concept_job(job.tools, job.spec.concept, dataset, patient=True)


async def estimate(job: Job, plan: ConceptPlan) -> Estimate:
    """Say what is to come."""
    draws = job.spec.concept.control_draws
    cost = await estimate_concept_job(job.tools, job.project, plan, draws)
    seconds = sum(cost["stage_s"].values())
    await job.progress.say(
        f"estimate: {cost['items']:,} images, {cost['cached']:,} from the cache, "
        f"about {seconds:.0f} s, {cost['stored_bytes'] / 1e6:.1f} MB"
    )
    return cost


async def teacher_outputs(job: Job, plan: ConceptPlan) -> Shards:
    """Ask the teacher for its response to every image."""
    manifest = await read_manifest(job.tools, job.project, plan["dataset"])
    return await run_shards(job, teacher_stage(job.tools, plan["teacher"]), manifest)


async def embed_regions(job: Job, plan: ConceptPlan) -> Shards:
    """Embed every image's regions."""
    manifest = await read_manifest(job.tools, job.project, plan["dataset"])
    return await run_shards(job, region_stage(job.tools, job.project, plan["encoder"]), manifest)


async def concepts(job: Job, plan: ConceptPlan) -> Words:
    """Choose the words and embed them."""
    return await prepare_words(job, job.spec.concept, plan)


async def fit(
    job: Job, plan: ConceptPlan, outputs: Shards, regions: Shards, words: Words
) -> Trained:
    """Fit the student to the teacher's responses, with its controls, and evaluate it."""
    recipe = concept_recipe(job.spec.concept, plan, outputs, regions, words)
    return await train(job, student_pb2.TrainRequest(concept=recipe))


async def publish(job: Job, plan: ConceptPlan, trained: Trained) -> dict[str, str]:
    """Make the student a version that people can inspect, tune and serve."""
    _, dataset_id = names.parse(plan["dataset"]["name"], "datasets")
    student_id = job.spec.concept.student_id or dataset_id
    blobs = trained["blobs"]
    made = students.Made(
        job=job.name,
        dataset=plan["dataset"]["name"],
        teacher=plan["teacher"]["name"],
        encoder=plan["encoder"]["name"],
        classes=tuple(plan["teacher"]["classes"]),
        weights_digest=blobs["weights"],
        card_digest=blobs["card"],
        report_digest=blobs["report"],
        description=sentence(job.spec.concept, student_id),
    )
    row = await asyncio.to_thread(students.publish, job.tools.store, job.project, student_id, made)
    version = names.join(job.project, "students", student_id, "versions", str(row.number))
    return {"student_version": version, "report": blobs["report"]}


def concept_recipe(
    spec: jobs_pb2.ConceptJobSpec,
    plan: ConceptPlan,
    outputs: Shards,
    regions: Shards,
    words: Words,
) -> student_pb2.ConceptRecipe:
    """Return the recipe: digests and settings alone, so that the same inputs give the same one."""
    teacher, encoder, dataset = plan["teacher"], plan["encoder"], plan["dataset"]
    recipe = student_pb2.ConceptRecipe(
        data=student_pb2.TrainingData(
            manifest=_blob(dataset["manifest"]),
            teacher_shards=[_blob(digest) for digest in outputs["digests"]],
            region_shards=[_blob(digest) for digest in regions["digests"]],
        ),
        concepts=words["words"],
        concept_embeddings=_blob(words["embeddings"]),
        control_embeddings=_blob(words["control"]),
        loss=student_pb2.LOSS_BCE if plan["multi_label"] else student_pb2.LOSS_SOFTMAX,
        seed=spec.seed,
        control_draws=spec.control_draws,
        whole_image_only=spec.whole_image_only,
        provenance={
            "dataset": dataset["name"],
            "teacher": teacher["name"],
            "teacher_digest": teacher["digest"],
            "encoder": encoder["name"],
            "encoder_digest": encoder["digest"],
            "preprocessing_digest": encoder["preprocessing_digest"],
            "region_digest": encoder["region_digest"],
        },
    )
    if spec.WhichOneof("sparsity") == "l1":
        recipe.l1 = spec.l1
    else:
        recipe.nec = spec.nec
    return recipe


def sentence(spec: jobs_pb2.ConceptJobSpec, student_id: str) -> str:
    """Return the command that repeats the job."""
    parts = ["stillhouse distill concept", f"--dataset {names.parse(spec.dataset, 'datasets')[1]}"]
    parts.append(f"--teacher {names.parse(spec.teacher, 'models', field='teacher')[1]}")
    parts.append(f"--student {student_id}")
    if spec.seed:
        parts.append(f"--seed {spec.seed}")
    return " ".join(parts)


def _blob(digest: str) -> items_pb2.BlobRef:
    return items_pb2.BlobRef(digest=digest)
