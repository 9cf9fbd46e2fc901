"""Generate from end to end: prompts in, events out as answers are written."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np
from google.rpc import status_pb2
from stillhouse.common.v1 import items_pb2
from stillhouse.teacher.v1 import teacher_pb2

from services.common import metrics
from services.common.admission import Door, Load, Place
from services.common.errors import InvalidInput, Overloaded, StillhouseError
from services.common.fair_slots import FairSlots
from services.common.fairness import Flow, Weights
from services.common.pace import ServiceRate
from services.common.tensors import to_message
from services.teacher.language import prompts
from services.teacher.language.batching import plan
from services.teacher.language.generation import Answer, Batch, SamplingOptions, new_answer
from services.teacher.language.options import sampling_options
from services.teacher.language.registry import ServedLanguageModel
from services.teacher.language.shards import InThread
from services.teacher.settings import TeacherSettings


class Writers:
    """Lets some Generate calls write at the same time and keeps the others waiting, up to a limit
    of prompts; projects take turns by their shares."""

    def __init__(self, at_once: int, max_items: int, weights: Weights) -> None:
        self._at_once, self._slots = at_once, FairSlots(at_once, weights)
        self._door = Door("the queue of prompts", Load(max_items, math.inf), weights)
        self._rate = ServiceRate(memory_s=60.0)

    @asynccontextmanager
    async def room(self, flow: Flow, items: int) -> AsyncIterator[None]:
        """Wait for a turn. Raises Overloaded or QuotaReached where too many prompts are inside
        already."""
        place = self._admitted(flow, Load(items, items))
        try:
            async with self._slots.hold(flow):
                started_s = time.perf_counter()
                yield
                self._rate.observe(items, (time.perf_counter() - started_s) / self._at_once)
        finally:
            place.leave()

    def _admitted(self, flow: Flow, load: Load) -> Place:
        try:
            self._door.check_room(flow, load, now_s=time.perf_counter(), per_s=self._rate.per_s)
        except Overloaded as error:
            metrics.refuse("answers", load.items, reason=error.reason)
            raise
        return Place(self._door, flow, load)


async def write(
    served: ServedLanguageModel,
    request: teacher_pb2.GenerateRequest,
    settings: TeacherSettings,
    in_thread: InThread,
) -> AsyncGenerator[teacher_pb2.GenerateResponse, None]:
    """Yield the events of all items. Answers are written side by side, batches by length, made of
    this request's prompts alone; a caller that leaves stops them after the token in flight."""
    options = sampling_options(request.sampling)
    started_s = time.perf_counter()
    given = await asyncio.to_thread(
        lambda: [_begin(served, item, options, settings) for item in request.items]
    )
    preprocess_ms = (time.perf_counter() - started_s) * 1000
    for at, one in enumerate(given):
        if isinstance(one, status_pb2.Status):
            yield _event(request, at, error=one)
    good = [(at, one) for at, one in enumerate(given) if isinstance(one, Answer)]
    sizes = [one.prompt_length + one.room for _, one in good]
    for group in plan(sizes, settings.max_cache_tokens, limit=settings.generate_batch):
        places = [good[n][0] for n in group]
        answers = [good[n][1] for n in group]
        batch = Batch(served.loaded, served.head, answers, options, chunk=settings.max_batch_tokens)
        while not batch.done:
            writing = sum(not answer.done for answer in answers)
            for n in await in_thread(batch.step, items=writing):
                for event in _progress(request, places[n], answers[n], preprocess_ms):
                    yield event


def _begin(
    served: ServedLanguageModel,
    item: teacher_pb2.GenerateItem,
    options: SamplingOptions,
    settings: TeacherSettings,
) -> Answer | status_pb2.Status:
    loaded = served.loaded
    try:
        prompts.check_item_id(item.item_id)
        prompt = prompts.prompt_ids(item.prompt, loaded.encoder, loaded.vocab_size)
        if not len(prompt):
            raise InvalidInput("prompt: has no tokens", field="prompt")
        limit = min(loaded.context_length, settings.max_cache_tokens)
        if len(prompt) >= limit:
            raise InvalidInput(
                f"prompt: {len(prompt):,} tokens leave no room for an answer within {limit:,}",
                field="prompt",
            )
        room = min(options.max_tokens, limit - len(prompt))
        return new_answer(loaded, prompt, replace(options, max_tokens=room), item.seed)
    except StillhouseError as error:
        return error.to_status()


def _progress(
    request: teacher_pb2.GenerateRequest, at: int, answer: Answer, preprocess_ms: float
) -> Sequence[teacher_pb2.GenerateResponse]:
    events = []
    if request.stream_text and (piece := answer.text.take(last=answer.done)):
        events.append(_event(request, at, text=piece))
    if answer.done:
        stop, length = teacher_pb2.FINISH_REASON_STOP, teacher_pb2.FINISH_REASON_LENGTH
        found = teacher_pb2.Generation(
            text=answer.text.text,
            token_count=len(answer.text.ids),
            finish_reason=stop if answer.stopped else length,
            log_probability=answer.log_probability,
            token_ids=to_message(np.array(answer.text.ids, np.int32)),
            timings=items_pb2.Timings(preprocess_ms=preprocess_ms),
        )
        events.append(_event(request, at, generation=found))
    return events


def _event(  # type: ignore[no-untyped-def]
    request: teacher_pb2.GenerateRequest, at: int, **event
) -> teacher_pb2.GenerateResponse:
    return teacher_pb2.GenerateResponse(index=at, item_id=request.items[at].item_id, **event)
