"""TeacherService: checks a call, decodes its images, runs them through the model's queue; hands
language models' calls on."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass

from google.rpc import status_pb2
from PIL import Image
from stillhouse.common.v1 import items_pb2
from stillhouse.teacher.v1 import teacher_pb2, teacher_pb2_grpc
from torch import Tensor

from services.common import images, metrics
from services.common.batching import Served
from services.common.blobs import BlobStore, digest_of
from services.common.inputs import check_batch, each, read_bytes
from services.common.interceptors import Context
from services.common.names import check_id, join, parse
from services.common.pages import page
from services.common.tensors import to_message
from services.common.timings import encoding, timings_of
from services.teacher.language.calls import LanguageCalls
from services.teacher.registry import Registry, Row, ServedModel
from services.teacher.settings import TeacherSettings
from services.teacher.views import ViewCalls


@dataclass(frozen=True)
class _Prepared:
    """An item ready for the model; `row` is set where the trunk's answer is remembered."""

    digest: str
    tensor: Tensor | None
    row: Row | None
    preprocess_ms: float = 0.0


class TeacherServicer(teacher_pb2_grpc.TeacherServiceServicer):
    """The RPCs of TeacherService."""

    def __init__(
        self,
        settings: TeacherSettings,
        registry: Registry,
        blobs: BlobStore,
        language: LanguageCalls,
    ) -> None:
        self._settings, self._registry, self._blobs = settings, registry, blobs
        self._language = language
        self._limits = images.Limits(settings.max_image_bytes, settings.max_image_pixels)
        self._decoders = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="decode")
        self._views = ViewCalls(settings, blobs, self._decoders)

    async def ListModels(
        self, request: teacher_pb2.ListModelsRequest, context: Context
    ) -> teacher_pb2.ListModelsResponse:
        project = check_id(request.project, field="project")
        found = await asyncio.to_thread(self._listed, project)
        models, token = page(found, request.page_size, request.page_token, scope=project)
        return teacher_pb2.ListModelsResponse(models=models, next_page_token=token)

    async def GetModel(
        self, request: teacher_pb2.GetModelRequest, context: Context
    ) -> teacher_pb2.GetModelResponse:
        project, model_id = parse(request.name, "models")
        if await asyncio.to_thread(self._language.knows, project, model_id):
            described = await self._language.describe(project, model_id)
            return teacher_pb2.GetModelResponse(model=described)
        served = await self._registry.get(project, model_id)
        return teacher_pb2.GetModelResponse(model=_describe(project, served))

    async def Classify(
        self, request: teacher_pb2.ClassifyRequest, context: Context
    ) -> teacher_pb2.ClassifyResponse:
        check_batch(request.items, limit=self._settings.max_batch_items)
        project, model_id = parse(request.model, "models", field="model")
        served = await self._registry.get(project, model_id)
        if request.HasField("augmentation"):
            return await self._views.classify(request, project, served)
        shard = request.execution == items_pb2.EXECUTION_SHARD

        async def prepare(item: items_pb2.ImageInput) -> _Prepared:
            return await self._prepare(item, project, served, shard=shard)

        prepared = await each(request.items, prepare)
        waiting = [p for p in prepared if isinstance(p, _Prepared)]
        rows = await served.batcher.submit(
            [p.tensor for p in waiting if p.tensor is not None], shard=shard
        )
        answers = _join(waiting, rows)
        if shard:
            for one, row in zip(waiting, answers, strict=True):
                served.remembered.put(project, one.digest, row)
        given = iter(zip(waiting, answers, strict=True))
        spent = timings_of(rows, sum(one.preprocess_ms for one in waiting))
        response = teacher_pb2.ClassifyResponse(model_digest=served.classifier.digest)
        with encoding(spent):
            response.results.extend(
                _failure(item.item_id, p)
                if isinstance(p, status_pb2.Status)
                else _answer(item.item_id, served, request, *next(given))
                for item, p in zip(request.items, prepared, strict=True)
            )
        response.timings.CopyFrom(spent)
        return response

    async def Score(
        self, request: teacher_pb2.ScoreRequest, context: Context
    ) -> teacher_pb2.ScoreResponse:
        return await self._language.score(request, context)

    async def SampleTargets(
        self, request: teacher_pb2.SampleTargetsRequest, context: Context
    ) -> teacher_pb2.SampleTargetsResponse:
        return await self._language.sample_targets(request)

    async def Generate(
        self, request: teacher_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[teacher_pb2.GenerateResponse]:
        async with aclosing(self._language.generate(request)) as events:
            async for event in events:
                yield event

    def _listed(self, project: str) -> list[teacher_pb2.Model]:
        """Every model of the project by name, none of them loaded. Blocking."""
        images = [
            teacher_pb2.Model(
                name=join(project, "models", one.model_id),
                kind=teacher_pb2.MODEL_KIND_IMAGE_CLASSIFIER,
                licence=one.licence,
                image_classifier=teacher_pb2.ImageClassifierSpec(
                    classes=one.classes, image_size=one.size_px, trunk=one.trunk
                ),
            )
            for one in self._registry.listed(project)
        ]
        return sorted([*images, *self._language.listed(project)], key=lambda model: model.name)

    async def _prepare(
        self, item: items_pb2.ImageInput, project: str, served: ServedModel, *, shard: bool
    ) -> _Prepared:
        if shard and item.digest:
            row = served.remembered.get(project, item.digest)
            metrics.look_up("outputs", hits=int(row is not None), misses=int(row is None))
            if row is not None:
                return _Prepared(item.digest, None, row)
        data = await read_bytes(item, self._blobs, project)
        loop = asyncio.get_running_loop()
        tensor, spent_ms = await loop.run_in_executor(self._decoders, self._tensor, data, served)
        return _Prepared(item.digest or digest_of(data), tensor, None, spent_ms)

    def _tensor(self, data: bytes, served: ServedModel) -> tuple[Tensor, float]:
        started_s = time.perf_counter()
        tensor = served.classifier.preprocess(images.decode(data, self._limits))
        spent_s = time.perf_counter() - started_s
        metrics.DECODE_SECONDS.observe(spent_s)
        return tensor, spent_s * 1000

    async def canary(self) -> None:
        """Classify one small image with the preloaded model, or score a few tokens, through the
        queue."""
        if await asyncio.to_thread(self._language.knows, "default", self._settings.preload):
            await self._language.canary(self._settings.preload)
            return
        served = await self._registry.get("default", self._settings.preload)
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), (90, 120, 30)).save(buffer, "PNG")
        tensor, _ = await asyncio.to_thread(self._tensor, buffer.getvalue(), served)
        await served.batcher.submit([tensor])

    async def close(self) -> None:
        """Stop the queues and the decoders."""
        await self._language.close()
        await self._registry.close()
        self._decoders.shutdown(wait=False)


def _describe(project: str, served: ServedModel) -> teacher_pb2.Model:
    classifier = served.classifier
    spec = teacher_pb2.ImageClassifierSpec(
        classes=classifier.classes,
        single_label=served.single_label,
        image_size=classifier.preprocessing.size_px,
        feature_dim=classifier.feature_dim,
        preprocessing_digest=classifier.preprocessing.digest,
        trunk=served.trunk,
    )
    return teacher_pb2.Model(
        name=join(project, "models", classifier.id),
        digest=classifier.digest,
        kind=teacher_pb2.MODEL_KIND_IMAGE_CLASSIFIER,
        licence=served.licence,
        image_classifier=spec,
    )


def _join(prepared: list[_Prepared], rows: list[Served[Row]]) -> list[Row]:
    """Return every item's row, remembered or fresh, in order."""
    fresh = iter(rows)
    return [next(fresh).result if one.row is None else one.row for one in prepared]


def _failure(item_id: str, status: status_pb2.Status) -> teacher_pb2.ClassifyResult:
    return teacher_pb2.ClassifyResult(item_id=item_id, error=status)


def _answer(
    item_id: str,
    served: ServedModel,
    request: teacher_pb2.ClassifyRequest,
    prepared: _Prepared,
    row: Row,
) -> teacher_pb2.ClassifyResult:
    outputs = set(request.outputs) or {teacher_pb2.CLASSIFY_OUTPUT_LOGITS}
    held_out = served.cross_fitted.get(prepared.digest) if request.cross_fitted else None
    answer = teacher_pb2.Classification(cross_fitted=held_out is not None)
    if teacher_pb2.CLASSIFY_OUTPUT_LOGITS in outputs:
        answer.logits.CopyFrom(to_message(served.logits(row) if held_out is None else held_out))
    if teacher_pb2.CLASSIFY_OUTPUT_FEATURES in outputs:
        answer.features.CopyFrom(to_message(row[1]))
    return teacher_pb2.ClassifyResult(item_id=item_id, classification=answer)
