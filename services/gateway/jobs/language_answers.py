"""Training records from a teacher's answers (sequence-level distillation), verified."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace

from services.common.errors import Precondition
from services.common.texts import TextRecord
from services.common.verifiers import verify
from services.gateway.jobs.answers import Answer, Ask, answer_all
from services.gateway.jobs.job import Job
from services.gateway.jobs.plans import LanguagePlan
from services.gateway.jobs.text_data import is_prompt, records_of

DEFAULT_MAX_TOKENS = 128


async def answered_records(job: Job, plan: LanguagePlan) -> tuple[list[TextRecord], dict[str, int]]:
    """Return the dataset's prompts with the teacher's answers, and how many answers were dropped by
    reason. Raises Precondition where none is left."""
    spec, dataset = job.spec.language, plan["inputs"]["dataset"]
    assert dataset is not None
    prompts = await records_of(job.tools, job.project, dataset, "train", is_prompt)
    times = spec.answers_per_prompt or 1
    asked = [(record, at) for record in prompts for at in range(times)]
    asks = [Ask(record.prompt, record.chat or spec.chat, at) for record, at in asked]
    done = 0

    async def tell(count: int) -> None:
        nonlocal done
        done += count
        await job.progress.update("answers", done=done, total=len(asks), unit="answers")

    found = await answer_all(
        job.tools, job.project, plan["teacher"], asks, spec.sampling, tell=tell
    )
    pairs = list(zip(asked, found, strict=True))
    kept, dropped = await asyncio.to_thread(_kept, job, pairs)
    if not kept:
        why = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items())
        raise Precondition(f"none of {len(asks):,} answers can be trained on: {why}")
    told = ", ".join(f"{count:,} dropped: {reason}" for reason, count in dropped.items())
    await job.progress.say(f"answers: {len(kept):,} kept{', ' + told if told else ''}")
    return kept, {"asked": len(asks), "kept": len(kept), **dropped}


def _kept(
    job: Job, pairs: list[tuple[tuple[TextRecord, int], Answer]]
) -> tuple[list[TextRecord], dict[str, int]]:
    """Sort answers: those that can be trained on, once each, and counts of the others."""
    spec = job.spec.language
    dropped: Counter[str] = Counter()
    kept: dict[tuple[str, str], TextRecord] = {}
    for (record, at), answer in pairs:
        reason = drop_reason(answer)
        if not reason and spec.HasField("verifier"):
            verdict = verify(spec.verifier, answer["text"], record, sandbox=job.tools.sandbox)
            reason = "" if verdict.accepted else "verifier"
        if not reason and (record.prompt, answer["text"]) in kept:
            reason = "duplicate"
        if reason:
            dropped[reason] += 1
            continue
        kept[record.prompt, answer["text"]] = replace(
            record,
            record_id=f"{record.record_id[:240]}#{at}",
            answer=answer["text"],
            chat=record.chat or spec.chat,
        )
    return list(kept.values()), dict(dropped)


def drop_reason(answer: Answer) -> str:
    """Return why an answer cannot be learned from; empty where it can.

    One that was cut off has no end, and training would teach that it ends there.
    """
    if answer["error"]:
        return "failed"
    if not answer["text"].strip():
        return "empty"
    return "" if answer["finished"] else "cut off"
