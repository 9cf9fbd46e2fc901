"""The tuneshift job (TuneShift-KD, arXiv 2603.24518): what a tuned model knows and its base does
not goes into a different model, from a few prompts.

The stages below are the method's steps. A round is found again where it was done; training runs are
re-attached; a review waits as long as a person needs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, TypedDict

from stillhouse.common.v1 import language_pb2
from stillhouse.student.v1 import student_pb2

from services.gateway.jobs.job import Job
from services.gateway.jobs.language_checks import wait_for_texts
from services.gateway.jobs.language_estimates import LanguageEstimate, estimate_tuneshift_job
from services.gateway.jobs.language_models import (
    frame,
    origin,
    publish_model,
    read_report,
    store_report,
)
from services.gateway.jobs.plans import ModelPlan, TextInputs, Trained, TuneShiftPlan
from services.gateway.jobs.reviews import decisions, is_used, wait_for_review
from services.gateway.jobs.text_data import (
    Measured,
    blob_refs,
    evaluation_of,
    held_out,
    is_trainable,
    records_of,
    shards_of,
    store_records,
)
from services.gateway.jobs.training import Place, train
from services.gateway.jobs.tuneshift_arms import Arm, build_arms, steps_of, to_records
from services.gateway.jobs.tuneshift_checks import check_tuneshift_job, tuneshift_names
from services.gateway.jobs.tuneshift_figures import Sample, coverage
from services.gateway.jobs.tuneshift_report import Run, make_report
from services.gateway.jobs.tuneshift_round import filter_of
from services.gateway.jobs.tuneshift_rounds import Rounds, read_outcome, run_rounds
from services.gateway.jobs.tuneshift_specs import arms_of, as_seed, model_id_of


class Made(TypedDict):
    """The rounds of the job, and those of the style model's arm where there is one."""

    own: Rounds
    style: Rounds | None


class Fitted(TypedDict):
    """All runs, the job's own first; its model; and what models measured that are not trained."""

    runs: list[Run]
    model: Trained
    references: dict[str, str]
    """Digests of reports by role: `target` (untrained), `base`, `tuned`."""


async def tuneshift_job(job: Job) -> dict[str, str]:
    """Run the job; return `model` and `report`."""
    inputs = await job.stage("ingest", ingest)
    plan = await job.stage("check", check, inputs)
    cost = await job.stage("estimate", estimate, plan)
    job.progress.expect(cost["stage_s"])
    made = await job.stage("rounds", rounds, plan)
    if job.spec.tuneshift.review:
        await job.stage("review", wait_for_review)
    fitted = await job.stage("fit", fit, plan, made)
    return await job.stage("publish", publish, plan, made, fitted)


async def ingest(job: Job) -> TextInputs:
    """Wait for the datasets' manifests."""
    return await wait_for_texts(job, tuneshift_names(job.spec.tuneshift))


async def check(job: Job, inputs: TextInputs) -> TuneShiftPlan:
    """Refuse what does not fit together before it costs anything."""
    return await check_tuneshift_job(job.tools, job.spec.tuneshift, inputs, patient=True)


async def estimate(job: Job, plan: TuneShiftPlan) -> LanguageEstimate:
    """Say what is to come."""
    cost = await estimate_tuneshift_job(job.tools, job.spec.tuneshift, plan)
    await job.progress.say(
        f"estimate: {cost['items']:,} prompts, about {cost['tokens']:,} tokens to generate, "
        f"about {sum(cost['stage_s'].values()):.0f} s"
    )
    return cost


async def rounds(job: Job, plan: TuneShiftPlan) -> Made:
    """Make examples and keep those that carry the tuned model's knowledge."""
    own = await run_rounds(job, plan, plan["tuned"])
    style = None
    if "style" in arms_of(job.spec.tuneshift):
        style = await run_rounds(job, plan, plan["style"], arm="style")
    return Made(own=own, style=style)


async def fit(job: Job, plan: TuneShiftPlan, made: Made) -> Fitted:
    """Train the target on every arm, with every seed; measure base and tuned beside it."""
    decided = await asyncio.to_thread(decisions, job.tools.store, job.pk)
    own, style = await samples_of(job, made["own"]), await samples_of(job, made["style"])
    arms = await build_arms(job, plan, own, style, decided)
    measured = await _measured(job, plan)
    replay = await _replay(job, plan)
    steps = steps_of(job.spec.tuneshift.training, arms[0].count, with_replay=bool(replay))
    references = await _references(job, plan, measured)
    runs: list[Run] = []
    model: Trained | None = None
    count = sum(len(arm.examples) for arm in arms)
    for arm in arms:
        for number in range(len(arm.examples)):
            recipe = await arm_recipe(job, plan, arm, number, steps, measured, replay)
            recipe.discard_model = model is not None
            label = f"{arm.name}/{number}" if len(arms) * len(arm.examples) > 1 else ""
            request = student_pb2.TrainRequest(language=recipe)
            place = Place(len(runs), count, steps)
            trained = await train(job, request, run=label, place=place)
            model = model or trained
            runs.append(
                Run(
                    arm=arm.name,
                    seed=number,
                    report=trained["blobs"]["report"],
                    examples=len(arm.examples[number]),
                    tokens=sum(one["token_count"] for one in arm.examples[number]),
                )
            )
    assert model is not None
    return Fitted(runs=runs, model=model, references=references)


async def publish(job: Job, plan: TuneShiftPlan, made: Made, fitted: Fitted) -> dict[str, str]:
    """Name the target as a model of the project, and report on every arm."""
    spec = job.spec.tuneshift
    own = await samples_of(job, made["own"])
    decided = await asyncio.to_thread(decisions, job.tools.store, job.pk)
    used = [one for samples in own for one in samples if is_used(one, decided)]
    digests = {run["report"] for run in fitted["runs"]}
    datasets = plan["inputs"]["evaluation"]

    async def read(digest: str) -> dict[str, Any]:
        return await read_report(job, Trained(blobs={"report": digest}), datasets)

    groups, prompts = await _groups(job, plan), [one["prompt"] for one in used]
    reports = {digest: await read(digest) for digest in digests}
    references = {role: await read(digest) for role, digest in fitted["references"].items()}
    report = await asyncio.to_thread(
        make_report,
        own,
        filter_of(spec),
        fitted["runs"],
        reports,
        references,
        coverage=await asyncio.to_thread(coverage, groups, prompts),
        extra={
            "ended": made["own"]["ended"],
            "generated_tokens": sum(one["tokens"] for one in (made["own"], made["style"]) if one),
            "examples": len(used),
            "decisions": len(decided),
        },
    )
    model = await publish_model(job, model_id_of(spec), fitted["model"])
    return {"model": model, "report": await store_report(job, report)}


async def samples_of(job: Job, made: Rounds | None) -> list[list[Sample]]:
    """Return the examples of all rounds, round by round."""
    digests = made["digests"] if made else []
    return [(await read_outcome(job, digest))["samples"] for digest in digests]


async def arm_recipe(
    job: Job,
    plan: TuneShiftPlan,
    arm: Arm,
    number: int,
    steps: int,
    measured: Measured,
    replay: Sequence[str],
) -> student_pb2.LanguageRecipe:
    """Return the recipe of one arm with one seed: the answers are learned word for word."""
    spec = job.spec.tuneshift
    training = language_pb2.LanguageTraining()
    training.CopyFrom(spec.training)
    training.max_steps = steps
    training.seed = as_seed(spec.training.seed + number)
    if training.loss == language_pb2.LANGUAGE_LOSS_UNSPECIFIED:
        training.loss = language_pb2.LANGUAGE_LOSS_CROSS_ENTROPY
    if spec.ablations or spec.tau_arms:
        training.patience = 0  # an arm that stops early would get fewer steps than the others
    provenance = origin("tuneshift", base=plan["base"], tuned=plan["tuned"]) | {"arm": arm.name}
    evaluation = _evaluation(job, measured)
    evaluation.skip_before = True
    recipe = frame(plan["target"], training, plan["sequence_length"], evaluation, provenance)
    records = to_records(arm.examples[number], chat=spec.chat)
    recipe.text_shards.extend(blob_refs(await store_records(job.tools, job.project, records)))
    recipe.replay_shards.extend(blob_refs(replay))
    return recipe


async def _references(job: Job, plan: TuneShiftPlan, measured: Measured) -> dict[str, str]:
    """Measure the untrained target once for all arms, and base and tuned; return digests of
    reports."""
    if measured == Measured((), (), ()):
        return {}
    found = {}
    models: dict[str, ModelPlan] = {
        "target": plan["target"],
        "base": plan["base"],
        "tuned": plan["tuned"],
    }
    for role, model in models.items():
        recipe = student_pb2.LanguageRecipe(
            student=model["name"].rsplit("/", 1)[-1],
            evaluation=_evaluation(job, measured),
            evaluate_only=True,
            tokenizer_digest=model["tokenizer_digest"],
            provenance={"student_digest": model["digest"], "kind": "reference"},
        )
        recipe.training.sequence_length = plan["sequence_length"]
        trained = await train(job, student_pb2.TrainRequest(language=recipe), run=role)
        found[role] = trained["blobs"]["report"]
    return found


async def _measured(job: Job, plan: TuneShiftPlan) -> Measured:
    spec = job.spec.tuneshift
    verifier = spec.verifier if spec.HasField("verifier") else None
    datasets = plan["inputs"]["evaluation"]
    return await held_out(job.tools, job.project, datasets, verifier, chat=spec.chat)


def _evaluation(job: Job, measured: Measured) -> student_pb2.LanguageEvaluation:
    spec = job.spec.tuneshift
    verifier = spec.verifier if spec.HasField("verifier") else None
    return evaluation_of(measured, [], verifier, spec.sampling)


async def _replay(job: Job, plan: TuneShiftPlan) -> list[str]:
    dataset = plan["inputs"]["replay"]
    if dataset is None:
        return []
    return await shards_of(job.tools, job.project, dataset, "train", is_trainable)


async def _groups(job: Job, plan: TuneShiftPlan) -> set[str]:
    """Return the groups of the evaluation questions: what each is about."""
    found: set[str] = set()
    for dataset in plan["inputs"]["evaluation"]:
        questions = await records_of(
            job.tools, job.project, dataset, "test", lambda record: bool(record.choices)
        )
        found |= {record.group for record in questions if record.group}
    return found
