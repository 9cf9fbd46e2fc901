"""Rounds of a prune job before its last: a large cut is made in even steps, each trained.

All of them learn from the whole model's targets, which are stored once (Minitron, arXiv
2407.14679). What a round makes is the next one's model by the digest of its record; it never gets a
name.
"""

from __future__ import annotations

from stillhouse.gateway.v1 import jobs_pb2 as pb
from stillhouse.student.v1 import student_pb2

from services.common.errors import Internal, Precondition
from services.gateway.jobs.job import Job
from services.gateway.jobs.plans import (
    LanguageData,
    PruneChoice,
    PruneCuts,
    PrunePlan,
    PruneRound,
)
from services.gateway.jobs.prune_arms import Recipes, round_exam
from services.gateway.jobs.prune_data import measured_shards, steps_for
from services.gateway.jobs.prune_specs import rounds_of
from services.gateway.jobs.training import Place, train


def round_steps(spec: pb.PruneJobSpec, steps: int, place: int) -> int:
    """Return a round's part of all optimizer steps, counted from 0: an even one, the last with the
    rest. Raises Precondition where there are fewer steps than rounds."""
    rounds = rounds_of(spec)
    if steps < rounds:
        raise Precondition(
            f"{steps} steps are too few for {rounds} rounds; give more epochs or fewer rounds",
            differences={"rounds": f"{rounds} of {steps} steps"},
        )
    each = steps // rounds
    return each if place + 1 < rounds else steps - each * (rounds - 1)


async def train_round(
    job: Job,
    plan: PrunePlan,
    cuts: PruneCuts,
    data: LanguageData,
    choice: PruneChoice,
    place: int,
) -> PruneRound:
    """Train the chosen cut of a round before the last, counted from 0."""
    exam = round_exam(await measured_shards(job, plan), data)
    recipes = Recipes(job.spec.prune, plan, cuts, data, exam)
    steps = round_steps(job.spec.prune, steps_for(job, data), place)
    recipe = recipes.of_round(place, choice["number"], steps)
    trained = await train(
        job,
        student_pb2.TrainRequest(language=recipe),
        run=f"round/{place + 1}",
        place=Place(place, rounds_of(job.spec.prune) - 1, steps),
        stage="rounds",
    )
    model = trained["blobs"].get("model")
    if not model:
        raise Internal("the training run of a round made no model")
    return PruneRound(cuts=cuts, choice=choice, report=trained["blobs"]["report"], model=model)
