"""The language job: a language model is trained from another one's predictions, or from a dataset.

Stored targets are RS-KD (arXiv 2503.16870), sequence level is Kim and Rush (arXiv 1606.07947) with
rejection by a verifier, on-policy is GKD (arXiv 2306.13649). The stages below are the method's
steps; each is recorded, finds what exists already, and may be killed at any moment.
"""

from __future__ import annotations

from stillhouse.student.v1 import student_pb2

from services.common.errors import Precondition
from services.gateway.jobs.job import Job
from services.gateway.jobs.language_answers import answered_records
from services.gateway.jobs.language_checks import (
    check_language_job,
    language_names,
    wait_for_texts,
)
from services.gateway.jobs.language_estimates import LanguageEstimate, estimate_language_job
from services.gateway.jobs.language_models import (
    frame,
    origin,
    publish_model,
    read_report,
    store_report,
)
from services.gateway.jobs.language_specs import is_uld, model_id_of
from services.gateway.jobs.plans import (
    LanguageData,
    LanguagePlan,
    Targets,
    TextInputs,
    Trained,
)
from services.gateway.jobs.targets import (
    check_stored,
    for_training,
    most_probable,
    store_targets,
    target_figures,
)
from services.gateway.jobs.text_data import (
    Keep,
    blob_refs,
    evaluation_of,
    held_out,
    is_prompt,
    is_trainable,
    measured_datasets,
    shards_of,
    store_records,
)
from services.gateway.jobs.training import train


async def language_job(job: Job) -> dict[str, str]:
    """Run the job; return `model` and `report`."""
    inputs = await job.stage("ingest", ingest)
    plan = await job.stage("check", check, inputs)
    cost = await job.stage("estimate", estimate, plan)
    job.progress.expect(cost["stage_s"])
    if plan["mode"] == "sequence_level":
        data = await job.stage("answers", answers, plan)
    elif plan["mode"] == "stored_targets":
        data = await job.stage("targets", targets, plan)
    else:
        data = await job.stage("targets", held_out_targets, plan)
    trained = await job.stage("fit", fit, plan, data)
    return await job.stage("publish", publish, plan, data, trained)


async def ingest(job: Job) -> TextInputs:
    """Wait for the datasets' manifests."""
    return await wait_for_texts(job, language_names(job.spec.language))


async def check(job: Job, inputs: TextInputs) -> LanguagePlan:
    """Refuse what does not fit together before it costs anything."""
    return await check_language_job(job.tools, job.spec.language, inputs, patient=True)


async def estimate(job: Job, plan: LanguagePlan) -> LanguageEstimate:
    """Say what is to come."""
    cost = await estimate_language_job(job.tools, job.project, job.spec.language, plan)
    await job.progress.say(
        f"estimate: {cost['items']:,} records, about {cost['tokens']:,} tokens, "
        f"about {sum(cost['stage_s'].values()):.0f} s, {cost['stored_bytes'] / 1e6:.1f} MB"
    )
    return cost


async def targets(job: Job, plan: LanguagePlan) -> LanguageData:
    """Store the teacher's distribution at every token of the dataset, as unbiased samples."""
    spec = job.spec.language
    texts = await training_shards(job, plan, is_trainable)
    measured = await held_out_shards(job, plan)
    request = for_training(plan["teacher"], spec.training, spec.bytes_per_token)
    stored = await store_targets(
        job,
        plan["teacher"],
        request,
        texts,
        sequence_length=plan["sequence_length"],
        first=0,
        total=len(texts) + len(measured),
    )
    check_stored(stored)
    await job.progress.say(
        f"targets: {stored['tokens']:,} tokens, "
        f"{stored['stored_bytes'] / max(stored['tokens'], 1):.1f} bytes a token"
    )
    held = await _held_out_targets(job, plan, measured, first=len(texts))
    again = texts if is_uld(spec.training) else []  # for the student's own tokenizer
    return LanguageData(texts=again, targets=stored, held_out=held, notes={})


async def held_out_targets(job: Job, plan: LanguagePlan) -> LanguageData:
    """Where nothing is stored to train on: the teacher's choices on held-out data alone."""
    keep = is_prompt if plan["mode"] == "on_policy" else is_trainable
    texts = await training_shards(job, plan, keep)
    measured = await held_out_shards(job, plan)
    held = await _held_out_targets(job, plan, measured, first=0)
    return LanguageData(texts=texts, targets=None, held_out=held, notes={})


async def answers(job: Job, plan: LanguagePlan) -> LanguageData:
    """Let the teacher answer the dataset's prompts; keep what ends by itself and is verified."""
    records, dropped = await answered_records(job, plan)
    texts = await store_records(job.tools, job.project, records)
    return LanguageData(texts=texts, targets=None, held_out=None, notes=dropped)


async def fit(job: Job, plan: LanguagePlan, data: LanguageData) -> Trained:
    """Train the student, and measure it on held-out data before and after."""
    recipe = await language_recipe(job, plan, data)
    return await train(job, student_pb2.TrainRequest(language=recipe))


async def publish(
    job: Job, plan: LanguagePlan, data: LanguageData, trained: Trained
) -> dict[str, str]:
    """Name the student as a model of the project; the teacher service serves it from then on."""
    report = await read_report(job, trained, measured_datasets(plan["inputs"]))
    report |= {"kind": "language", "mode": plan["mode"]}
    if data["targets"] is not None:
        report["targets"] = target_figures(data["targets"])
        report["skipped"] = [*data["targets"]["skipped"], *report.get("skipped", [])]
    if data["notes"]:
        report["answers"] = data["notes"]
    model = await publish_model(job, model_id_of(job.spec.language), trained)
    return {"model": model, "report": await store_report(job, report)}


async def language_recipe(
    job: Job, plan: LanguagePlan, data: LanguageData
) -> student_pb2.LanguageRecipe:
    """Return the recipe of the job's one run."""
    spec, dataset = job.spec.language, plan["inputs"]["dataset"]
    verifier = spec.verifier if spec.HasField("verifier") else None
    measured = await held_out(
        job.tools, job.project, measured_datasets(plan["inputs"]), verifier, chat=spec.chat
    )
    held = data["held_out"]["shards"] if data["held_out"] else []
    evaluation = evaluation_of(measured, held, verifier, spec.sampling)
    provenance = origin("language", teacher=plan["teacher"], dataset=dataset) | {
        "mode": plan["mode"]
    }
    recipe = frame(plan["student"], spec.training, plan["sequence_length"], evaluation, provenance)
    if is_uld(spec.training):
        recipe.tokenizer_digest = plan["teacher"]["tokenizer_digest"]
    recipe.keep_layers.extend(spec.keep_layers)
    recipe.text_shards.extend(blob_refs(data["texts"]))
    if data["targets"] is not None:
        recipe.target_shards.extend(blob_refs(data["targets"]["shards"]))
    if plan["inputs"]["replay"] is not None:
        replay = plan["inputs"]["replay"]
        found = await shards_of(job.tools, job.project, replay, "train", is_trainable)
        recipe.replay_shards.extend(blob_refs(found))
    if plan["mode"] == "on_policy":
        recipe.on_policy.teacher = plan["teacher"]["name"]
        recipe.on_policy.sampling.CopyFrom(spec.sampling)
    return recipe


async def training_shards(job: Job, plan: LanguagePlan, keep: Keep) -> list[str]:
    """Return the shards of the records to train on. Raises Precondition where there are none."""
    dataset = plan["inputs"]["dataset"]
    assert dataset is not None
    chat = job.spec.language.chat
    found = await shards_of(job.tools, job.project, dataset, "train", keep, chat=chat)
    if not found:
        raise Precondition(
            f"dataset {dataset['name']} has no train record that {plan['mode']} can use"
        )
    return found


async def held_out_shards(job: Job, plan: LanguagePlan) -> list[str]:
    """Return the shards of held-out texts and answers that the teacher can be compared on."""
    if not plan["same_tokens"]:
        return []
    measured = await held_out(
        job.tools, job.project, measured_datasets(plan["inputs"]), None, chat=job.spec.language.chat
    )
    return list(measured.texts)


async def _held_out_targets(
    job: Job, plan: LanguagePlan, shards: list[str], *, first: int
) -> Targets | None:
    if not shards:
        return None
    return await store_targets(
        job,
        plan["teacher"],
        most_probable(plan["teacher"]),
        shards,
        sequence_length=plan["sequence_length"],
        first=first,
        total=first + len(shards),
    )
