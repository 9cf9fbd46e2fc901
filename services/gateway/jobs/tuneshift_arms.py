"""The arms of a tuneshift job: what each trains on, all with equal steps and tokens.

Every arm takes the same number of optimizer steps of the same number of sequences. The random
filter and the job's own arm also hold the same number of answer tokens; the unfiltered pool is
larger, so that it is gone through fewer times.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stillhouse.gateway.v1 import jobs_pb2 as pb

from services.common.errors import Precondition
from services.common.texts import TextRecord
from services.gateway.jobs.answers import Ask, answer_all
from services.gateway.jobs.job import Job
from services.gateway.jobs.language_answers import drop_reason
from services.gateway.jobs.plans import TuneShiftPlan
from services.gateway.jobs.reviews import is_used
from services.gateway.jobs.tuneshift_figures import Sample, is_kept, is_valid, refiltered
from services.gateway.jobs.tuneshift_prompts import seed_prompts
from services.gateway.jobs.tuneshift_round import filter_of, with_seed
from services.gateway.jobs.tuneshift_specs import arms_of


@dataclass(frozen=True)
class Arm:
    """Examples of an arm: one list per training seed, the same one unless they are drawn."""

    name: str
    examples: tuple[tuple[Sample, ...], ...]

    @property
    def count(self) -> int:
        """Return the examples of the first seed."""
        return len(self.examples[0])

    @property
    def tokens(self) -> int:
        """Return the answer tokens of the first seed's examples."""
        return tokens_of(self.examples[0])


async def build_arms(
    job: Job,
    plan: TuneShiftPlan,
    rounds: Sequence[Sequence[Sample]],
    style: Sequence[Sequence[Sample]],
    decided: Mapping[str, str],
) -> list[Arm]:
    """Return the arms that have examples, the job's own first. Raises Precondition where that has
    none."""
    spec = job.spec.tuneshift
    pool = [one for samples in rounds for one in samples]
    kept = [one for one in pool if is_used(one, decided)]
    if not kept:
        raise Precondition(_nothing_kept(pool))
    seeds = spec.training_seeds or 1
    found = []
    for name in arms_of(spec):
        if name == "random_filter":
            drawn = [random_filter(pool, kept, spec.seed, at) for at in range(seeds)]
        elif name == "seeds_only":
            drawn = [await _seed_answers(job, plan)] * seeds
        else:
            chosen = await asyncio.to_thread(_chosen, name, spec, rounds, style, kept)
            drawn = [chosen] * seeds
        if drawn[0]:
            found.append(Arm(name, tuple(map(tuple, drawn))))
        else:
            await job.progress.say(f"fit: arm {name} has no examples and is left out")
    return found


def random_filter(
    pool: Sequence[Sample], kept: Sequence[Sample], seed: int, training_seed: int
) -> list[Sample]:
    """Return examples drawn from the pool until they have as many answer tokens as `kept`."""
    order = [one for one in pool if is_valid(one)]
    random.Random(f"random filter {seed} {training_seed}").shuffle(order)
    found: list[Sample] = []
    left = tokens_of(kept)
    for one in order:
        if left <= 0:
            break
        found.append(one)
        left -= one["token_count"]
    return found


def to_records(samples: Sequence[Sample], *, chat: bool) -> list[TextRecord]:
    """Return examples as records to train on."""
    return [
        TextRecord(one["sample_id"], prompt=one["prompt"], answer=one["answer"], chat=chat)
        for one in samples
    ]


def tokens_of(samples: Sequence[Sample]) -> int:
    """Return the tokens of all answers."""
    return sum(one["token_count"] for one in samples)


def _chosen(
    name: str,
    spec: pb.TuneShiftJobSpec,
    rounds: Sequence[Sequence[Sample]],
    style: Sequence[Sequence[Sample]],
    kept: list[Sample],
) -> list[Sample]:
    if name == "no_filter":
        return [one for samples in rounds for one in samples if is_valid(one)]
    if name == "style":
        return [one for samples in style for one in samples if is_kept(one)]
    if name.startswith("tau_"):
        return refiltered(rounds, filter_of(spec), float(name.removeprefix("tau_")))
    return kept


async def _seed_answers(job: Job, plan: TuneShiftPlan) -> list[Sample]:
    """Return the tuned model's answers to the seed prompts."""
    spec = job.spec.tuneshift
    prompts = seed_prompts(spec.seed_prompts, spec.words, spec.seed)
    asks = [Ask(one.prompt, spec.chat, at) for at, one in enumerate(prompts)]
    sampling = with_seed(spec, spec.sampling.seed + spec.seed)
    answers = await answer_all(job.tools, job.project, plan["tuned"], asks, sampling)
    return [
        Sample(
            sample_id=f"seed-{at + 1}",
            prompt=prompt.prompt,
            answer=answer["text"],
            word=prompt.word,
            round=0,
            off_domain=False,
            tuned_perplexity=None,
            base_perplexity=None,
            nll_gap=None,
            reason="",
            token_count=answer["tokens"],
        )
        for at, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
        if not drop_reason(answer)
    ]


def _nothing_kept(pool: Sequence[Sample]) -> str:
    counts: dict[str, int] = {}
    for one in pool:
        counts[one["reason"] or "a person"] = counts.get(one["reason"] or "a person", 0) + 1
    why = ", ".join(f"{count:,} by {reason}" for reason, count in counts.items())
    return (
        f"no example is left to train on; of {len(pool):,} were dropped: {why}. A smaller tau, or "
        "prompts nearer to what the model was tuned on, keep more"
    )
