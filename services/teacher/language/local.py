"""A language model in this process: requests in, the models' one thread, replies out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import partial
from typing import TypeVar

import numpy as np
from google.rpc import status_pb2
from stillhouse.teacher.v1 import teacher_pb2

from services.common import tracing
from services.common.accounting import Tally, noted
from services.common.batching import Served
from services.common.blobs import BlobStore
from services.common.device import Device
from services.common.errors import StillhouseError
from services.common.fairness import Flow
from services.common.names import join
from services.common.tensors import Array, to_message
from services.common.timings import encoding, timings_of
from services.teacher.language import prompts
from services.teacher.language.backend import flow_of
from services.teacher.language.registry import ServedLanguageModel
from services.teacher.language.scoring import ScoreInput
from services.teacher.language.shards import ShardWork
from services.teacher.language.writing import Writers, write
from services.teacher.settings import TeacherSettings

R = TypeVar("R")
METHODS = ("Score", "SampleTargets", "Generate")


class LocalBackend:
    """Serves one loaded model."""

    def __init__(
        self,
        served: ServedLanguageModel,
        settings: TeacherSettings,
        device: Device,
        blobs: BlobStore,
        writers: Writers,
    ) -> None:
        self._served, self._settings, self._device = served, settings, device
        self._blobs, self._writers = blobs, writers

    async def describe(self, project: str) -> teacher_pb2.Model:
        loaded = self._served.loaded
        config = loaded.model.config
        spec = teacher_pb2.LanguageModelSpec(
            tokenizer_digest=loaded.tokenizer_digest,
            vocab_size=loaded.vocab_size,
            context_length=loaded.context_length,
            parameter_count=loaded.parameter_count,
            layer_count=config.num_hidden_layers,
            hidden_size=config.hidden_size,
            base=loaded.base,
            has_chat_template=loaded.encoder.has_chat_template,
            precision=loaded.precision,
            backend="transformers",
            methods=METHODS,
        )
        return teacher_pb2.Model(
            name=join(project, "models", loaded.model_id),
            digest=loaded.digest,
            kind=teacher_pb2.MODEL_KIND_LANGUAGE_MODEL,
            licence=loaded.licence,
            language_model=spec,
        )

    async def score(
        self, request: teacher_pb2.ScoreRequest, time_left_s: float | None
    ) -> teacher_pb2.ScoreResponse:
        started_s = time.perf_counter()
        given = await asyncio.to_thread(lambda: [self._input(item) for item in request.items])
        preprocess_ms = (time.perf_counter() - started_s) * 1000
        inputs = [one for one in given if isinstance(one, ScoreInput)]
        rows = await self._served.scores.submit(
            inputs, flow=flow_of(request), time_left_s=time_left_s
        )
        left = iter(zip(inputs, rows, strict=True))
        spent = timings_of(rows, preprocess_ms)
        response = teacher_pb2.ScoreResponse(model_digest=self._served.loaded.digest)
        with encoding(spent):
            response.results.extend(
                teacher_pb2.ScoreResult(item_id=item.item_id, error=one)
                if isinstance(one, status_pb2.Status)
                else _answer(item.item_id, *next(left), per_token=request.per_token)
                for item, one in zip(request.items, given, strict=True)
            )
        response.timings.CopyFrom(spent)
        return response

    async def sample_targets(
        self, project: str, request: teacher_pb2.SampleTargetsRequest
    ) -> teacher_pb2.SampleTargetsResponse:
        flow = Flow(project, shard=True)
        thread = _Thread(self._device, flow, f"{self._served.loaded.model_id} targets")
        work = ShardWork(self._served, self._settings, self._blobs, thread)
        reply = await work.run(project, request)
        reply.timings.MergeFrom(thread.tally.timings())
        return reply

    async def generate(
        self, request: teacher_pb2.GenerateRequest
    ) -> AsyncGenerator[teacher_pb2.GenerateResponse, None]:
        # A step makes one token, too little for a span of its own.
        flow, name = flow_of(request), f"{self._served.loaded.model_id} answers"
        thread, asked_s = _Thread(self._device, flow, name, traced=False), time.perf_counter()
        async with (
            self._writers.room(flow, len(request.items)),
            aclosing(write(self._served, request, self._settings, thread)) as events,
        ):
            thread.tally.queue_s = time.perf_counter() - asked_s
            with tracing.span("write", {"stillhouse.model": name}):
                async for event in events:
                    if event.HasField("generation"):
                        event.generation.timings.MergeFrom(thread.tally.timings())
                    yield event

    async def canary(self) -> None:
        """Score a few tokens through the queue."""
        ids = np.arange(4, dtype=np.int32) % self._served.loaded.vocab_size
        await self._served.scores.probe(ScoreInput(ids, 1))

    def _input(self, item: teacher_pb2.ScoreItem) -> ScoreInput | status_pb2.Status:
        loaded = self._served.loaded
        make = partial(
            prompts.score_input,
            context=loaded.context_length,
            budget=self._settings.max_batch_tokens,
        )
        try:
            return make(item, loaded.encoder, loaded.vocab_size)
        except StillhouseError as error:
            return error.to_status()


class _Thread:
    """The models' device as one call has it: all work is noted, and added up in `tally`."""

    def __init__(self, device: Device, flow: Flow, name: str, *, traced: bool = True) -> None:
        self._device, self._flow, self._name, self._traced = device, flow, name, traced
        self.tally = Tally()

    async def __call__(self, work: Callable[[], R], *, items: int = 1) -> R:
        mine = noted(work, self._name, items=items, tally=self.tally, traced=self._traced)
        return await self._device.run(mine, flow=self._flow)


def _answer(
    item_id: str, given: ScoreInput, row: Served[Array], *, per_token: bool
) -> teacher_pb2.ScoreResult:
    values = row.result
    found = teacher_pb2.AnswerScore(
        log_probability=float(values.astype(np.float64).sum()), token_count=len(values)
    )
    if per_token:
        found.token_log_probabilities.CopyFrom(to_message(values))
        found.token_ids.CopyFrom(to_message(given.scored))
    return teacher_pb2.ScoreResult(item_id=item_id, score=found)
