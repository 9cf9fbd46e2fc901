"""The prune job (Minitron, arXiv 2407.14679): a language model is cut to a size, and what is left
learns from the model as it was.

The stages below are the method's steps: measure what matters, store the whole model's predictions
once, train the likeliest cuts shortly to choose one, train that one; for a large cut in several
rounds. Each is recorded, finds what exists already, and may be killed at any moment.
"""

from __future__ import annotations

import asyncio
from typing import Any, TypedDict

from stillhouse.student.v1 import student_pb2

from services.common.errors import Precondition
from services.gateway.jobs.arms import Run
from services.gateway.jobs.job import Job
from services.gateway.jobs.language_checks import wait_for_texts
from services.gateway.jobs.language_estimates import LanguageEstimate, estimate_prune_job
from services.gateway.jobs.language_models import publish_model, read_report, store_report
from services.gateway.jobs.plans import (
    LanguageData,
    PruneChoice,
    PruneCuts,
    PrunePlan,
    PruneRound,
    RankedCut,
    TextInputs,
    Trained,
)
from services.gateway.jobs.prune_arms import Recipes, ranking_exam
from services.gateway.jobs.prune_checks import check_prune_job, prune_names
from services.gateway.jobs.prune_cuts import (
    cuts_of,
    importance_recipe,
    of_whole_model,
    said_of,
    small_enough,
)
from services.gateway.jobs.prune_data import (
    exam_of,
    measured_shards,
    steps_for,
    training_shards,
)
from services.gateway.jobs.prune_report import held_out_cross_entropy, make_report
from services.gateway.jobs.prune_rounds import round_steps, train_round
from services.gateway.jobs.prune_specs import (
    OWN_ARM,
    model_id_of,
    ranking_steps_of,
    rounds_of,
    runs_of,
)
from services.gateway.jobs.prune_teacher import correct
from services.gateway.jobs.targets import check_stored, for_training, most_probable, store_targets
from services.gateway.jobs.text_data import Measured, measured_datasets
from services.gateway.jobs.training import Place, train


class Fitted(TypedDict):
    """All runs, the job's own first; its model; and what the whole model measured."""

    runs: list[Run]
    model: Trained
    full: str
    """Digest of the whole model's report; empty where nothing is held out."""


async def prune_job(job: Job) -> dict[str, str]:
    """Run the job; return `model` and `report`."""
    inputs = await job.stage("ingest", ingest)
    plan = await job.stage("check", check, inputs)
    cost = await job.stage("estimate", estimate, plan)
    job.progress.expect(cost["stage_s"])
    if job.spec.prune.correct_teacher:
        plan = await job.stage("correct", correct, plan)
    rounds: list[PruneRound] = []
    cuts = await job.stage("importance", importance, plan, rounds)
    data = await job.stage("targets", targets, plan)
    choice = await choose(job, plan, cuts, data, rounds)
    while len(rounds) + 1 < rounds_of(job.spec.prune):
        made = await job.stage("rounds", train_round, plan, cuts, data, choice, len(rounds))
        rounds.append(made)
        cuts = await job.stage("importance", importance, plan, rounds)
        choice = await choose(job, plan, cuts, data, rounds)
    fitted = await job.stage("fit", fit, plan, cuts, data, choice, rounds)
    return await job.stage("publish", publish, plan, cuts, data, choice, rounds, fitted)


async def ingest(job: Job) -> TextInputs:
    """Wait for the datasets' manifests."""
    return await wait_for_texts(job, prune_names(job.spec.prune))


async def check(job: Job, inputs: TextInputs) -> PrunePlan:
    """Refuse what does not fit together before it costs anything."""
    return await check_prune_job(job.tools, job.spec.prune, inputs, patient=True)


async def estimate(job: Job, plan: PrunePlan) -> LanguageEstimate:
    """Say what is to come."""
    cost = await estimate_prune_job(job.tools, job.project, job.spec.prune, plan)
    await job.progress.say(
        f"estimate: {cost['items']:,} records, about {cost['tokens']:,} tokens, "
        f"about {sum(cost['stage_s'].values()):.0f} s, {cost['stored_bytes'] / 1e6:.1f} MB"
    )
    return cost


async def importance(job: Job, plan: PrunePlan, rounds: list[PruneRound]) -> PruneCuts:
    """Measure how much the parts of the model matter, or of what the last of the `rounds` made, and
    find cuts of the size that was asked for, or an even step towards it.

    Raises InvalidInput where no model is as small as that.
    """
    settled = small_enough(job.spec.prune, rounds)
    if settled is not None:
        await job.progress.say("importance: the model is small enough; this round only trains it")
        return settled
    texts = await training_shards(job, plan)
    recipe = importance_recipe(job.spec.prune, plan, texts, rounds)
    request = student_pb2.TrainRequest(importance=recipe)
    measured = await train(job, request, stage="importance")
    cuts = await cuts_of(job, measured, rounds)
    await job.progress.say(said_of(cuts, len(rounds) + 1, rounds_of(job.spec.prune)))
    return cuts


async def targets(job: Job, plan: PrunePlan) -> LanguageData:
    """Store the whole model's distribution at every token, once for all candidates and arms."""
    spec = job.spec.prune
    texts, measured = await training_shards(job, plan), await measured_shards(job, plan)
    if spec.candidates > 1 and not measured.texts:
        raise Precondition("no test record has text, so there is nothing to rank candidates on")
    model, length = plan["model"], plan["sequence_length"]
    total = len(texts) + len(measured.texts)
    request = for_training(model, spec.training, spec.bytes_per_token)
    stored = await store_targets(
        job, model, request, texts, sequence_length=length, first=0, total=total
    )
    check_stored(stored)
    held = None
    if measured.texts:
        held = await store_targets(
            job,
            model,
            most_probable(model),
            measured.texts,
            sequence_length=length,
            first=len(texts),
            total=total,
        )
    data = LanguageData(texts=[], targets=stored, held_out=held, notes={})
    round_steps(spec, steps_for(job, data), 0)
    return data


async def choose(
    job: Job, plan: PrunePlan, cuts: PruneCuts, data: LanguageData, rounds: list[PruneRound]
) -> PruneChoice:
    """Take the likeliest cut, or the best of several."""
    if min(job.spec.prune.candidates, len(cuts["candidates"])) > 1:
        return await job.stage("rank", rank, plan, cuts, data, len(rounds))
    return PruneChoice(number=0, ranked=[])


async def rank(
    job: Job, plan: PrunePlan, cuts: PruneCuts, data: LanguageData, at: int
) -> PruneChoice:
    """Train the likeliest cuts of a round, counted from 0, shortly; choose the one of the lowest
    held-out cross-entropy."""
    spec = job.spec.prune
    recipes = Recipes(spec, plan, cuts, data, ranking_exam(await measured_shards(job, plan)))
    steps = ranking_steps_of(spec, round_steps(spec, steps_for(job, data), at))
    count = min(spec.candidates, len(cuts["candidates"]))
    ranked: list[RankedCut] = []
    for number in range(count):
        request = student_pb2.TrainRequest(language=recipes.of_candidate(number, steps))
        place = Place(number, count, steps)
        trained = await train(job, request, run=f"candidate/{number}", place=place, stage="rank")
        loss = held_out_cross_entropy(await read_report(job, trained, []))
        report = trained["blobs"]["report"]
        ranked.append(RankedCut(number=number, cross_entropy=loss, report=report))
    best = min(ranked, key=lambda one: one["cross_entropy"])
    await job.progress.say(
        f"rank: candidate {best['number']} of {count} is taken, held-out cross-entropy "
        f"{best['cross_entropy']:.3f} after {steps:,} steps"
    )
    return PruneChoice(number=best["number"], ranked=ranked)


async def fit(
    job: Job,
    plan: PrunePlan,
    cuts: PruneCuts,
    data: LanguageData,
    choice: PruneChoice,
    rounds: list[PruneRound],
) -> Fitted:
    """Train the chosen cut and its controls, with every seed, for equally many steps, those of the
    rounds before included. Controls are cut out of the whole model."""
    spec, measured = job.spec.prune, await measured_shards(job, plan)
    exam = exam_of(job, measured, data)
    recipes = Recipes(spec, plan, cuts, data, exam)
    beside = Recipes(spec, plan, of_whole_model(cuts, rounds), data, exam)
    full = ""
    if measured != Measured((), (), ()):
        request = student_pb2.TrainRequest(language=recipes.of_full_model())
        full = (await train(job, request, run="full"))["blobs"]["report"]
    stored, steps = data["targets"], steps_for(job, data)
    assert stored is not None
    asked = runs_of(spec)
    runs: list[Run] = []
    model: Trained | None = None
    for arm, seed in asked:
        if arm == OWN_ARM:
            last = round_steps(spec, steps, len(rounds))
            recipe = recipes.of_arm(arm, seed, choice["number"], last)
        else:
            recipe = beside.of_arm(arm, seed, choice["number"], steps)
        recipe.discard_model = model is not None
        label = f"{arm}/{seed}" if len(asked) > 1 else ""
        place = Place(len(runs), len(asked), steps)
        request = student_pb2.TrainRequest(language=recipe)
        trained = await train(job, request, run=label, place=place)
        model = model or trained
        runs.append(
            Run(
                arm=arm,
                seed=seed,
                report=trained["blobs"]["report"],
                examples=stored["sequences"],
                tokens=stored["tokens"],
            )
        )
    assert model is not None
    return Fitted(runs=runs, model=model, full=full)


async def publish(
    job: Job,
    plan: PrunePlan,
    cuts: PruneCuts,
    data: LanguageData,
    choice: PruneChoice,
    rounds: list[PruneRound],
    fitted: Fitted,
) -> dict[str, str]:
    """Name the cut as a model of the project, and report on candidates and arms."""
    datasets = measured_datasets(plan["inputs"])

    async def read(digest: str) -> dict[str, Any]:
        return await read_report(job, Trained(blobs={"report": digest}), datasets)

    choices = [choice, *(one["choice"] for one in rounds)]
    digests = [one["report"] for made in choices for one in made["ranked"]]
    digests += [one["report"] for one in (*fitted["runs"], *rounds)]
    whole = rounds[0]["cuts"] if rounds else cuts
    report = await asyncio.to_thread(  # bootstraps: too long for the loop
        make_report,
        job.spec.prune,
        cuts,
        choice,
        rounds,
        fitted["runs"],
        reports={digest: await read(digest) for digest in dict.fromkeys(digests)},
        importance=await read(whole["report"]),
        full=await read(fitted["full"]) if fitted["full"] else {},
        correction=await read(plan["correction"]) if plan["correction"] else {},
        stored=data["targets"],
    )
    model = await publish_model(job, model_id_of(job.spec.prune), fitted["model"])
    return {"model": model, "report": await store_report(job, report)}
