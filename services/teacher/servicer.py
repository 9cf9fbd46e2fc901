"""TeacherService: checks a call, decodes its images, runs them through the model's queue; hands
language models' calls on."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

from google.rpc import status_pb2
from PIL import Image
from stillhouse.common.v1 import items_pb2
from stillhouse.teacher.v1 import teacher_pb2, teacher_pb2_grpc
from torch import Tensor

from services.common import images, metrics
from services.common.batching import Served
from services.common.blobs import BlobStore, digest_of
from services.common.fair_pool import FairPool
from services.common.fairness import Flow
from services.common.inputs import check_batch, each, read_bytes
from services.common.interceptors import Context, time_left_s
from services.common.names import check_id, join, parse
from services.common.pages import page
from services.common.tensors import to_message
from services.common.timings import encoding, timings_of
from services.teacher.language.calls import LanguageCalls
from services.teacher.memory_rpcs import MemoryRpcs
from services.teacher.registry import Registry
from services.teacher.remote.calls import RemoteCalls
from services.teacher.served import Row, ServedModel
from services.teacher.settings import TeacherSettings
from services.teacher.views import ViewCalls


@dataclass(frozen=True)
class _Prepared:
    """An item ready for the model; `row` is set where the trunk's answer is remembered."""

    digest: str
    square: Tensor | None
    row: Row | None
    preprocess_ms: float = 0.0


class TeacherServicer(MemoryRpcs, teacher_pb2_grpc.TeacherServiceServicer):
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
        self._decoders = FairPool(settings.decode_threads, settings.weights, name="decode")
        self._views = ViewCalls(settings, blobs, self._decoders)
        self._remote = RemoteCalls(settings, registry.catalogue, blobs, self._decoders)

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
        if self._remote.knows(model_id):
            described = await self._remote.describe(project, model_id, context)
            return teacher_pb2.GetModelResponse(model=described)
        served = await self._registry.get(project, model_id)
        return teacher_pb2.GetModelResponse(model=_describe(project, served))

    async def Classify(
        self, request: teacher_pb2.ClassifyRequest, context: Context
    ) -> teacher_pb2.ClassifyResponse:
        check_batch(request.items, limit=self._settings.max_batch_items)
        project, model_id = parse(request.model, "models", field="model")
        if self._remote.knows(model_id):
            return await self._remote.classify(request, project, model_id, context)
        left_s = time_left_s(context)
        async with self._registry.use(project, model_id) as served:
            if request.HasField("augmentation"):
                return await self._views.classify(request, project, served, left_s)
            return await self._classify(request, project, served, left_s)

    async def _classify(
        self,
        request: teacher_pb2.ClassifyRequest,
        project: str,
        served: ServedModel,
        left_s: float | None,
    ) -> teacher_pb2.ClassifyResponse:
        flow = Flow(project, request.execution == items_pb2.EXECUTION_SHARD)

        async def prepare(item: items_pb2.ImageInput) -> _Prepared:
            return await self._prepare(item, flow, served)

        with served.batcher.admitted(len(request.items), flow, time_left_s=left_s) as place:
            prepared = await each(request.items, prepare)
            waiting = [p for p in prepared if isinstance(p, _Prepared)]
            rows = await served.batcher.submit(
                [p.square for p in waiting if p.square is not None], place=place
            )
        answers = _join(waiting, rows)
        if flow.shard:
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
        others = [*self._remote.listed(project), *self._language.listed(project)]
        return sorted([*images, *others], key=lambda model: model.name)

    def loaded(self, project: str) -> dict[str, str]:
        """Return the digests, by id, of the project's image classifiers that answer at once: those
        in memory, and those whose servers have been reached."""
        return {**self._registry.loaded(project), **self._remote.reached()}

    async def _prepare(
        self, item: items_pb2.ImageInput, flow: Flow, served: ServedModel
    ) -> _Prepared:
        if flow.shard and item.digest:
            row = served.remembered.get(flow.project, item.digest)
            metrics.look_up("outputs", hits=int(row is not None), misses=int(row is None))
            if row is not None:
                return _Prepared(item.digest, None, row)
        data = await read_bytes(item, self._blobs, flow.project)
        return await self._decoders.run(partial(self._read, data, item.digest, served), flow=flow)

    def _read(self, data: bytes, digest: str, served: ServedModel) -> _Prepared:
        """Decode and preprocess an image. Raises ImageError."""
        started_s = time.perf_counter()
        classifier = served.classifier
        smaller_px = classifier.preprocessing.decode_px
        square = classifier.square(images.decode(data, self._limits, at_least_px=smaller_px))
        spent_s = time.perf_counter() - started_s
        metrics.DECODE_SECONDS.observe(spent_s)
        return _Prepared(digest or digest_of(data), square, None, spent_s * 1000)

    async def canary(self) -> None:
        """Classify one small image with the preloaded model, or score a few tokens, through the
        queue."""
        if await asyncio.to_thread(self._language.knows, "default", self._settings.preload):
            await self._language.canary(self._settings.preload)
            return
        if self._remote.knows(self._settings.preload):
            await self._remote.canary(self._settings.preload)
            return
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), (90, 120, 30)).save(buffer, "PNG")
        async with self._registry.use("default", self._settings.preload) as served:
            prepared = await asyncio.to_thread(self._read, buffer.getvalue(), "", served)
            assert prepared.square is not None
            await served.batcher.probe(prepared.square)

    async def close(self) -> None:
        """Stop the queues and the decoders."""
        await self._language.close()
        await self._remote.close()
        await self._registry.close()
        self._decoders.close()


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
