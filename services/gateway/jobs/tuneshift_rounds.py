"""The rounds of a tuneshift job, until enough is kept or nothing new comes.

A round's outcome is one blob, found again after a kill; its name covers all that it depends on, the
round before included.
"""

from __future__ import annotations

import asyncio
import functools
import json
import random
from typing import Any, TypedDict

from stillhouse.gateway.v1 import jobs_pb2 as pb

from services.common.blobs import digest_of
from services.common.errors import Precondition
from services.gateway.jobs.found import once
from services.gateway.jobs.job import Job
from services.gateway.jobs.plans import ModelPlan, TuneShiftPlan
from services.gateway.jobs.text_data import is_prompt, records_of
from services.gateway.jobs.tuneshift_figures import is_kept
from services.gateway.jobs.tuneshift_round import Outcome, State, make_round
from services.gateway.jobs.tuneshift_specs import off_domain_share, prompts_of, rounds_of

FEW = 0.02
"""Two rounds in a row with a smaller share kept end the rounds."""
_MADE_WITH = (
    "seed_prompts",
    "words",
    "off_domain_share",
    "prompts_per_round",
    "filter",
    "sampling",
    "verifier",
    "seed",
    "chat",
)
"""Fields of the specification that a round depends on, beside models and datasets."""


class Rounds(TypedDict):
    """What the rounds made: a blob of each round's outcome, and why they ended."""

    digests: list[str]
    tokens: int
    """Tokens generated, those of written prompts included."""
    ended: str


async def run_rounds(job: Job, plan: TuneShiftPlan, tuned: ModelPlan, *, arm: str = "") -> Rounds:
    """Run the rounds with `tuned` as the model that knows; `arm` names an ablation of them."""
    spec = job.spec.tuneshift
    off_domain = await _off_domain(job, plan)
    state, ended = State(), ""
    while not ended:
        number = len(state.outcomes) + 1
        work = functools.partial(make_round, job, plan, tuned, state, number, off_domain)
        value, _ = await once(
            job.tools, job.project, "rounds", _inputs(spec, plan, tuned, number, state), work
        )
        outcome = await read_outcome(job, value["digest"])
        state.add(value["digest"], outcome)
        ended = _ended(spec, state)
        await _tell(job, state, arm, ended)
    return Rounds(digests=state.digests, tokens=state.tokens, ended=ended)


async def read_outcome(job: Job, digest: str) -> Outcome:
    """Return a round's outcome."""
    data = await asyncio.to_thread(job.tools.blobs.get, job.project, digest)
    found: Outcome = json.loads(data)
    return found


def _ended(spec: pb.TuneShiftJobSpec, state: State) -> str:
    """Return why the rounds end here; empty where they go on."""
    kept = sum(is_kept(one) for one in state.samples)
    rates = [
        sum(is_kept(one) for one in outcome["samples"]) / max(len(outcome["samples"]), 1)
        for outcome in state.outcomes
    ]
    if not state.outcomes[-1]["samples"]:
        return "there are no new prompts"
    if spec.target_examples and kept >= spec.target_examples:
        return f"{kept:,} examples are kept"
    if spec.token_budget and state.tokens >= spec.token_budget:
        return f"the budget of {spec.token_budget:,} tokens is spent"
    if len(rates) > 1 and max(rates[-2:]) < FEW:
        return f"two rounds kept less than {FEW:.0%}"
    if len(state.outcomes) >= rounds_of(spec):
        return "all rounds are done"
    return ""


async def _tell(job: Job, state: State, arm: str, ended: str) -> None:
    spec, samples = job.spec.tuneshift, state.outcomes[-1]["samples"]
    kept = sum(is_kept(one) for one in samples)
    if not arm:
        await job.note(rounds=" ".join(state.digests))
    await job.progress.update(
        "rounds", done=len(state.outcomes), total=rounds_of(spec), unit="rounds"
    )
    name = f"round {len(state.outcomes)}{' of ' + arm if arm else ''}"
    after = f"; {ended}" if ended else ""
    await job.progress.say(f"rounds: {name} kept {kept:,} of {len(samples):,}{after}")


async def _off_domain(job: Job, plan: TuneShiftPlan) -> list[str]:
    """Return the prompts from outside the domain in a seeded order, each once."""
    dataset = plan["inputs"]["off_domain"]
    if dataset is None or not off_domain_share(job.spec.tuneshift):
        return []
    found: list[str] = []
    for split in ("train", "val", "test"):
        records = await records_of(job.tools, job.project, dataset, split, is_prompt)
        found += [record.prompt for record in records]
    if not found:
        raise Precondition(f"dataset {dataset['name']} has no prompts to mix in")
    prompts = list(dict.fromkeys(found))
    random.Random(f"off-domain {job.spec.tuneshift.seed}").shuffle(prompts)
    return prompts


def _inputs(
    spec: pb.TuneShiftJobSpec,
    plan: TuneShiftPlan,
    tuned: ModelPlan,
    number: int,
    state: State,
) -> dict[str, Any]:
    """Return all that a round depends on."""
    own = pb.TuneShiftJobSpec()
    own.CopyFrom(spec)
    for field in spec.DESCRIPTOR.fields:
        if field.name not in _MADE_WITH:
            own.ClearField(field.name)  # type: ignore[arg-type]
    off_domain = plan["inputs"]["off_domain"]
    models = (tuned, plan["base"], plan["generator"])
    return {
        "spec": digest_of(own.SerializeToString(deterministic=True)),
        "models": [f"{model['digest']} {model['precision']}" for model in models],
        "generator": bool(spec.generator),
        "off_domain": off_domain["manifest"] if off_domain else "",
        "drawn": rounds_of(spec) * prompts_of(spec) if spec.words else 0,
        "round": number,
        "before": state.digest,
    }
