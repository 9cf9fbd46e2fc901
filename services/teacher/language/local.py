"""A language model in this process: requests in, the models' one thread, replies out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial

import numpy as np
from google.rpc import status_pb2
from stillhouse.common.v1 import items_pb2
from stillhouse.teacher.v1 import teacher_pb2

from services.common.batching import Served
from services.common.blobs import BlobStore
from services.common.device import Device
from services.common.errors import StillhouseError
from services.common.fairness import Flow
from services.common.names import join
from services.common.tensors import Array, to_message
from services.teacher.language import prompts
from services.teacher.language.backend import flow_of
from services.teacher.language.registry import ServedLanguageModel
from services.teacher.language.scoring import ScoreInput
from services.teacher.language.shards import ShardWork
from services.teacher.language.writing import Writers, write
from services.teacher.settings import TeacherSettings

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
        results = [
            teacher_pb2.ScoreResult(item_id=item.item_id, error=one)
            if isinstance(one, status_pb2.Status)
            else _answer(item.item_id, *next(left), per_token=request.per_token)
            for item, one in zip(request.items, given, strict=True)
        ]
        return teacher_pb2.ScoreResponse(
            results=results,
            model_digest=self._served.loaded.digest,
            timings=_timings(rows, preprocess_ms),
        )

    async def sample_targets(
        self, project: str, request: teacher_pb2.SampleTargetsRequest
    ) -> teacher_pb2.SampleTargetsResponse:
        in_thread = partial(self._device.run, flow=Flow(project, shard=True))
        work = ShardWork(self._served, self._settings, self._blobs, in_thread)
        return await work.run(project, request)

    async def generate(
        self, request: teacher_pb2.GenerateRequest
    ) -> AsyncGenerator[teacher_pb2.GenerateResponse, None]:
        flow = flow_of(request)
        in_thread = partial(self._device.run, flow=flow)
        async with (
            self._writers.room(flow, len(request.items)),
            aclosing(write(self._served, request, self._settings, in_thread)) as events,
        ):
            async for event in events:
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


def _timings(rows: Sequence[Served[Array]], preprocess_ms: float) -> items_pb2.Timings:
    return items_pb2.Timings(
        queue_ms=max((row.queue_ms for row in rows), default=0.0),
        preprocess_ms=preprocess_ms,
        compute_ms=sum({row.compute_ms for row in rows}),
        batch_size=max((row.batch_size for row in rows), default=0),
    )
