"""The remote half of TeacherService: classifiers of the catalogue that answer in other servers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from google.rpc import status_pb2
from stillhouse.common.v1 import items_pb2
from stillhouse.teacher.v1 import teacher_pb2

from services.common import images
from services.common.augmentation import Augmentation
from services.common.blobs import BlobStore, digest_of
from services.common.catalogue import Catalogue, RemoteClassifier
from services.common.errors import Precondition
from services.common.fair_pool import FairPool
from services.common.fairness import Flow
from services.common.inputs import each, read_bytes
from services.common.interceptors import Context
from services.common.names import join
from services.common.tensors import Array, to_message
from services.teacher.remote.model import RemoteModel
from services.teacher.remote.tensors import RemoteTensors
from services.teacher.settings import TeacherSettings
from services.teacher.views import check_outputs_fit, checked_augmentation
from services.torch_common.augment import view_pixels


@dataclass(frozen=True)
class _Prepared:
    """The raw elements of one image, or of its views."""

    elements: list[bytes]
    preprocess_ms: float


@dataclass(frozen=True)
class _Group:
    """Results of some images, and what they took."""

    results: list[teacher_pb2.ClassifyResult]
    timings: items_pb2.Timings


class RemoteCalls:
    """Classify and the description of remote classifiers. Shares the servicer's decoders."""

    def __init__(
        self,
        settings: TeacherSettings,
        catalogue: Catalogue,
        blobs: BlobStore,
        decoders: FairPool,
    ) -> None:
        self._settings, self._blobs, self._decoders = settings, blobs, decoders
        self._limits = images.Limits(settings.max_image_bytes, settings.max_image_pixels)
        self._entries = {one.id: one for one in catalogue if isinstance(one, RemoteClassifier)}
        self._models: dict[str, RemoteModel] = {}

    def knows(self, model_id: str) -> bool:
        """Whether the name is one of a remote classifier."""
        return model_id in self._entries

    def reached(self) -> dict[str, str]:
        """Digests, by id, of the models whose servers have been reached."""
        return {one: model.digest for one, model in self._models.items() if model.digest}

    def listed(self, project: str) -> Iterator[teacher_pb2.Model]:
        """Yield every remote classifier; asks no server."""
        for entry in self._entries.values():
            classes = () if isinstance(entry.classes, str) else entry.classes
            size_px = entry.input.size_px if entry.input else 0
            spec = teacher_pb2.ImageClassifierSpec(
                classes=classes, image_size=size_px, trunk=entry.id
            )
            yield _message(project, entry, "", spec)

    async def describe(self, project: str, model_id: str, context: Context) -> teacher_pb2.Model:
        """Ask the server what it has. Raises PeerUnavailable, Precondition."""
        model = self._model(model_id)
        await model.refresh(_left_s(context))
        tensors, preprocessing = model.tensors, model.tensors.preprocessing
        spec = teacher_pb2.ImageClassifierSpec(
            classes=tensors.classes,
            single_label=tensors.entry.single_label,
            image_size=preprocessing.size_px if preprocessing else 0,
            preprocessing_digest=preprocessing.digest if preprocessing else "",
            trunk=model_id,
        )
        return _message(project, tensors.entry, model.digest, spec)

    async def classify(
        self,
        request: teacher_pb2.ClassifyRequest,
        project: str,
        model_id: str,
        context: Context,
    ) -> teacher_pb2.ClassifyResponse:
        """Answer by the server. A broken image fails itself; a server that is away fails all."""
        model = self._model(model_id)
        augmentation = self._checked(request, model.tensors)
        size = model.tensors.entry.max_batch

        async def one(items: Sequence[items_pb2.ImageInput]) -> _Group:
            async with model.slots:
                return await self._group(items, project, model, augmentation, _left_s(context))

        starts = range(0, len(request.items), size)
        with model.waiting(len(request.items)):
            found = await _all(one(request.items[at : at + size]) for at in starts)
        return _joined(found, model.digest)

    async def canary(self, model_id: str) -> None:
        """Ask the server for the model."""
        await self._model(model_id).refresh(None)

    async def close(self) -> None:
        """Close the connections."""
        await asyncio.gather(*(model.close() for model in self._models.values()))

    def _model(self, model_id: str) -> RemoteModel:
        if model_id not in self._models:
            self._models[model_id] = RemoteModel(self._entries[model_id], self._settings)
        return self._models[model_id]

    def _checked(
        self, request: teacher_pb2.ClassifyRequest, tensors: RemoteTensors
    ) -> Augmentation | None:
        """Refuse what the server cannot give; return the augmentation, if there is one."""
        if teacher_pb2.CLASSIFY_OUTPUT_FEATURES in request.outputs:
            raise Precondition(
                f"{tensors.entry.id} is in another server, which gives no features",
                differences={"outputs": "features"},
            )
        if not request.HasField("augmentation"):
            return None
        if tensors.preprocessing is None:
            raise Precondition(
                f"{tensors.entry.id}: its server crops and resizes images by itself, so views "
                "cannot be made here; give the entry input_format uint8 or fp32",
                differences={"input_format": "encoded"},
            )
        found = checked_augmentation(request)
        max_bytes = self._settings.max_message_bytes
        check_outputs_fit(request, len(tensors.classes), 0, found, max_bytes)
        return found

    async def _group(
        self,
        items: Sequence[items_pb2.ImageInput],
        project: str,
        model: RemoteModel,
        augmentation: Augmentation | None,
        left_s: float | None,
    ) -> _Group:
        flow = Flow(project, augmentation is not None)

        async def prepare(item: items_pb2.ImageInput) -> _Prepared:
            data = await read_bytes(item, self._blobs, project)
            work = partial(self._elements, data, item.digest, model.tensors, augmentation)
            return await self._decoders.run(work, flow=flow)

        prepared = await each(items, prepare)
        fit = [one for one in prepared if isinstance(one, _Prepared)]
        started_s = time.perf_counter()
        rows = await model.answers([raw for one in fit for raw in one.elements], left_s)
        remaining = iter(rows)
        results = []
        for item, one in zip(items, prepared, strict=True):
            failed = isinstance(one, status_pb2.Status)
            found = [one] if failed else [next(remaining) for _ in one.elements]
            results.append(_result(item.item_id, found, is_views=augmentation is not None))
        timings = items_pb2.Timings(
            preprocess_ms=sum(one.preprocess_ms for one in fit),
            compute_ms=(time.perf_counter() - started_s) * 1000,
            batch_size=min(len(rows), model.tensors.entry.max_batch),
        )
        return _Group(results, timings)

    def _elements(
        self, data: bytes, digest: str, tensors: RemoteTensors, augmentation: Augmentation | None
    ) -> _Prepared:
        started_s = time.perf_counter()
        if augmentation is None or tensors.preprocessing is None:
            found = [tensors.of_bytes(data)]
        else:
            image, name = images.decode(data, self._limits), digest or digest_of(data)
            found = [
                tensors.of_square(
                    view_pixels(image, name, view, augmentation, tensors.preprocessing)
                )
                for view in range(augmentation.views)
            ]
        return _Prepared(found, (time.perf_counter() - started_s) * 1000)


async def _all(work: Iterable[Coroutine[None, None, _Group]]) -> list[_Group]:
    """Run everything at once; the first failure ends the rest and is raised by itself."""
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(one) for one in work]
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
    return [one.result() for one in running]


def _left_s(context: Context) -> float | None:
    """Seconds that the caller still waits; None for ever, and for calls from within."""
    return context.time_remaining() if context is not None else None


def _message(
    project: str, entry: RemoteClassifier, digest: str, spec: teacher_pb2.ImageClassifierSpec
) -> teacher_pb2.Model:
    return teacher_pb2.Model(
        name=join(project, "models", entry.id),
        digest=digest,
        kind=teacher_pb2.MODEL_KIND_IMAGE_CLASSIFIER,
        licence=entry.licence,
        image_classifier=spec,
    )


def _result(
    item_id: str, rows: Sequence[Array | status_pb2.Status], *, is_views: bool
) -> teacher_pb2.ClassifyResult:
    """The result of one item: its one row, or the rows of its views."""
    for row in rows:
        if isinstance(row, status_pb2.Status):
            return teacher_pb2.ClassifyResult(item_id=item_id, error=row)
    logits = np.stack(rows) if is_views else rows[0]
    answer = teacher_pb2.Classification(logits=to_message(logits))
    return teacher_pb2.ClassifyResult(item_id=item_id, classification=answer)


def _joined(groups: Sequence[_Group], digest: str) -> teacher_pb2.ClassifyResponse:
    spent = [group.timings for group in groups]
    return teacher_pb2.ClassifyResponse(
        results=[result for group in groups for result in group.results],
        model_digest=digest,
        timings=items_pb2.Timings(
            preprocess_ms=sum(one.preprocess_ms for one in spent),
            compute_ms=sum(one.compute_ms for one in spent),
            batch_size=max(one.batch_size for one in spent),
        ),
    )
