"""One round of a tuneshift job: new prompts, the tuned model's answers, scores, and the verdict."""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

from stillhouse.common.v1 import language_pb2
from stillhouse.gateway.v1 import jobs_pb2 as pb

from services.common.texts import TextRecord
from services.common.verifiers import verify
from services.gateway.jobs.answers import Answer, Ask, Pair, Score, answer_all, score_all
from services.gateway.jobs.job import Job
from services.gateway.jobs.language_answers import drop_reason
from services.gateway.jobs.language_specs import as_seed
from services.gateway.jobs.plans import ModelPlan, TuneShiftPlan
from services.gateway.jobs.tuneshift_figures import Sample, is_kept
from services.gateway.jobs.tuneshift_filter import (
    DEFAULT_SHARE,
    DEFAULT_SIMILARITY,
    DEFAULT_TAU,
    Filter,
    Kept,
    judge,
    nll_gap,
    perplexity,
)
from services.gateway.jobs.tuneshift_prompts import (
    WANTED,
    Filled,
    draw_examples,
    filled_prompts,
    normal,
    parse_prompts,
    request_text,
)
from services.gateway.jobs.tuneshift_specs import off_domain_share, prompts_of, rounds_of

_ATTEMPTS = 3
_SEED_STEP = 1_000_003
_WRITING_TEMPERATURE = 0.9
_WRITING_TOKENS = 256


class Outcome(TypedDict):
    """One round."""

    samples: list[Sample]
    tokens: int
    """Tokens generated in it."""


@dataclass
class State:
    """What earlier rounds left."""

    digest: str = ""
    """Of the last outcome."""
    outcomes: list[Outcome] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)

    @property
    def samples(self) -> list[Sample]:
        """Return all examples so far."""
        return [one for outcome in self.outcomes for one in outcome["samples"]]

    @property
    def tokens(self) -> int:
        """Return the tokens generated so far."""
        return sum(outcome["tokens"] for outcome in self.outcomes)

    def add(self, digest: str, outcome: Outcome) -> None:
        """Take a round's outcome."""
        self.digest = digest
        self.digests.append(digest)
        self.outcomes.append(outcome)


def filter_of(spec: pb.TuneShiftJobSpec) -> Filter:
    """Return the filter's settings with their defaults."""
    found = spec.filter
    return Filter(
        tau=found.tau or DEFAULT_TAU,
        by_difference=found.by_difference,
        confident_share=found.confident_share or DEFAULT_SHARE,
        max_perplexity=found.max_perplexity or float("inf"),
        similarity=found.duplicate_similarity or DEFAULT_SIMILARITY,
    )


def with_seed(spec: pb.TuneShiftJobSpec, seed: int) -> language_pb2.Sampling:
    """Return the job's sampling with another seed."""
    sampling = language_pb2.Sampling()
    sampling.CopyFrom(spec.sampling)
    sampling.seed = as_seed(seed)
    return sampling


async def make_round(
    job: Job,
    plan: TuneShiftPlan,
    tuned: ModelPlan,
    state: State,
    number: int,
    off_domain: Sequence[str],
) -> dict[str, str]:
    """Run one round and store its outcome; return its digest."""
    spec = job.spec.tuneshift
    wanted = prompts_of(spec)
    off_count = round(wanted * off_domain_share(spec))
    inside, spent = await _in_domain(job, plan, state, number, wanted - off_count)
    before = sum(one["off_domain"] for one in state.samples)
    outside = off_domain[before : before + off_count] if inside else []
    prompts = inside + [Filled(one) for one in outside]
    seed = spec.sampling.seed + spec.seed * _SEED_STEP + number
    sampling = with_seed(spec, seed)
    asks = [Ask(one.prompt, spec.chat, at) for at, one in enumerate(prompts)]
    tell = _teller(job, number, "answers", len(asks))
    answers = await answer_all(job.tools, job.project, tuned, asks, sampling, tell=tell)
    scores = await _scores(job, plan, tuned, prompts, answers, number)
    samples = await asyncio.to_thread(
        _judged, job, prompts, answers, scores, number, len(inside), state
    )
    spent += sum(answer["tokens"] for answer in answers)
    data = json.dumps(Outcome(samples=samples, tokens=spent), sort_keys=True, ensure_ascii=False)
    return {"digest": await asyncio.to_thread(job.tools.blobs.put, job.project, data.encode())}


async def _in_domain(
    job: Job, plan: TuneShiftPlan, state: State, number: int, count: int
) -> tuple[list[Filled], int]:
    """Return new prompts of the domain, and the tokens that writing them took."""
    spec = job.spec.tuneshift
    if spec.words:
        done = sum(not one["off_domain"] for one in state.samples)
        lists = list(spec.seed_prompts), list(spec.words)
        every = await asyncio.to_thread(filled_prompts, *lists, done + count, spec.seed)
        return every[done : done + count], 0
    seeds = list(dict.fromkeys(spec.seed_prompts))
    first = [Filled(seed) for seed in seeds][:count] if number == 1 else []
    seen = {normal(one["prompt"]) for one in state.samples} | set(map(normal, seeds))
    kept = [one["prompt"] for one in state.samples if is_kept(one) and not one["off_domain"]]
    found, tokens = list(first), 0
    for attempt in range(_ATTEMPTS):
        if len(found) >= count:
            break
        missing = count - len(found)
        written, spent = await _write(job, plan, seeds, kept, missing, number, attempt)
        tokens += spent
        for prompt in written:
            if normal(prompt) not in seen and len(found) < count:
                seen.add(normal(prompt))
                found.append(Filled(prompt))
    return found, tokens


async def _write(
    job: Job,
    plan: TuneShiftPlan,
    seeds: Sequence[str],
    kept: Sequence[str],
    missing: int,
    number: int,
    attempt: int,
) -> tuple[list[str], int]:
    """Let the generator write prompts after examples of seeds and kept prompts."""
    spec, generator = job.spec.tuneshift, plan["generator"]
    chat = generator["has_chat_template"] and (spec.chat or bool(spec.generator))
    draw = random.Random(f"examples {spec.seed} {number} {attempt}")
    asks = [
        Ask(request_text(draw_examples(seeds, kept, draw), chat=chat), chat, at)
        for at in range(-(-missing // WANTED))
    ]
    sampling = with_seed(spec, spec.seed * _SEED_STEP + number * 101 + attempt)
    sampling.temperature = spec.sampling.temperature or _WRITING_TEMPERATURE
    sampling.max_tokens = _WRITING_TOKENS
    del sampling.stop[:]
    tell = _teller(job, number, "requests for prompts", len(asks))
    answers = await answer_all(job.tools, job.project, generator, asks, sampling, tell=tell)
    written = [one for answer in answers for one in parse_prompts(answer["text"], chat=chat)]
    return written, sum(answer["tokens"] for answer in answers)


async def _scores(
    job: Job,
    plan: TuneShiftPlan,
    tuned: ModelPlan,
    prompts: Sequence[Filled],
    answers: Sequence[Answer],
    number: int,
) -> list[tuple[Score, Score] | None]:
    """Score every answer under tuned and base; an answer that was cut off has no end to score."""
    chat = job.spec.tuneshift.chat
    places = [at for at, answer in enumerate(answers) if answer["text"].strip()]
    pairs = [
        Pair(prompts[at].prompt, answers[at]["text"], chat, answers[at]["finished"])
        for at in places
    ]
    found: list[list[Score]] = []
    for role, model in (("tuned", tuned), ("base", plan["base"])):
        tell = _teller(job, number, f"scores under the {role} model", len(pairs))
        found.append(await score_all(job.tools, job.project, model, pairs, tell=tell))
    scores: list[tuple[Score, Score] | None] = [None] * len(answers)
    for at, under_tuned, under_base in zip(places, *found, strict=True):
        scores[at] = (under_tuned, under_base)
    return scores


def _judged(
    job: Job,
    prompts: Sequence[Filled],
    answers: Sequence[Answer],
    scores: Sequence[tuple[Score, Score] | None],
    number: int,
    inside: int,
    state: State,
) -> list[Sample]:
    """Decide about every example: what cannot be used, the filter, then duplicates."""
    spec = job.spec.tuneshift
    settings = filter_of(spec)
    unfit = [
        drop_reason(answer) or _verifier_reason(job, prompt, answer)
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    perplexities = [_perplexities(one) for one in scores]
    ranked = [
        (math.nan, math.nan) if why else both for why, both in zip(unfit, perplexities, strict=True)
    ]
    verdicts = judge([tuned for tuned, _ in ranked], [base for _, base in ranked], settings)
    kept = Kept(settings.similarity)
    for one in state.samples:
        if is_kept(one):
            kept.add(one["prompt"], one["answer"], one["word"])
    samples = []
    for at, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        tuned, base = perplexities[at]
        reason = unfit[at] or verdicts[at]
        parts = (prompt.prompt, answer["text"], prompt.word)
        if not reason and kept.is_duplicate(*parts):
            reason = "duplicate"
        if not reason:
            kept.add(*parts)
        samples.append(
            Sample(
                sample_id=f"{number}-{at + 1}",
                prompt=prompt.prompt,
                answer=answer["text"],
                word=prompt.word,
                round=number,
                off_domain=at >= inside,
                tuned_perplexity=_known(tuned),
                base_perplexity=_known(base),
                nll_gap=_known(nll_gap(tuned, base)),
                reason=reason,
                token_count=answer["tokens"],
            )
        )
    return samples


def _verifier_reason(job: Job, prompt: Filled, answer: Answer) -> str:
    spec = job.spec.tuneshift
    if not spec.HasField("verifier"):
        return ""
    record = TextRecord("sample", prompt=prompt.prompt)
    verdict = verify(spec.verifier, answer["text"], record, sandbox=job.tools.sandbox)
    return "" if verdict.accepted else "verifier"


def _perplexities(scores: tuple[Score, Score] | None) -> tuple[float, float]:
    if scores is None or scores[0]["error"] or scores[1]["error"]:
        return math.nan, math.nan
    tuned, base = scores
    return (
        perplexity(tuned["log_probability"], tuned["tokens"]),
        perplexity(base["log_probability"], base["tokens"]),
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _teller(job: Job, number: int, what: str, total: int) -> Any:
    """Return a function that says how far a part of a round is."""
    done = 0

    async def tell(count: int) -> None:
        nonlocal done
        done += count
        await job.progress.update(
            "rounds",
            done=number - 1,
            total=rounds_of(job.spec.tuneshift),
            unit="rounds",
            detail=f"round {number}: {done:,} of {total:,} {what}",
        )

    return tell
