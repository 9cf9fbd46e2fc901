"""Classifies augmented views of a job's images: every image decoded once, its views in turn."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from google.rpc import status_pb2
from stillhouse.common.v1 import items_pb2
from stillhouse.teacher.v1 import teacher_pb2
from torch import Tensor

from services.common import images, metrics
from services.common.admission import Place
from services.common.augmentation import Augmentation, read_augmentation
from services.common.blobs import BlobStore, digest_of
from services.common.errors import InvalidInput
from services.common.fair_pool import FairPool
from services.common.fairness import Flow
from services.common.inputs import each, read_bytes
from services.common.tensors import to_message
from services.common.timings import encoding, timings_of, together
from services.teacher.served import Row, ServedModel
from services.teacher.settings import TeacherSettings
from services.torch_common.augment import view_pixels
from services.torch_common.preprocess import as_square


@dataclass(frozen=True)
class _Views:
    """The views of one image as the model takes them."""

    squares: list[Tensor]
    preprocess_ms: float


class ViewCalls:
    """Classify calls with an augmentation. Shares the servicer's decoders."""

    def __init__(self, settings: TeacherSettings, blobs: BlobStore, decoders: FairPool) -> None:
        self._blobs, self._decoders = blobs, decoders
        self._limits = images.Limits(settings.max_image_bytes, settings.max_image_pixels)
        # As many images as a shard's padded batch holds are in memory at once: whatever the number
        # of views, theirs fill whole batches.
        self._group = settings.shard_batch
        self._max_bytes = settings.max_message_bytes

    async def classify(
        self,
        request: teacher_pb2.ClassifyRequest,
        project: str,
        served: ServedModel,
        left_s: float | None,
    ) -> teacher_pb2.ClassifyResponse:
        """Answer for all views of every item. Raises InvalidInput, and Overloaded where there is no
        room or `left_s` seconds are too few; a broken image fails itself."""
        augmentation = checked_augmentation(request)
        classifier = served.classifier
        check_outputs_fit(
            request, len(classifier.classes), classifier.feature_dim, augmentation, self._max_bytes
        )
        response = teacher_pb2.ClassifyResponse(model_digest=served.classifier.digest)
        flow = Flow(project, shard=True)
        # Room for one group at a time is held until the end: a call is refused before it starts.
        most = min(self._group, len(request.items)) * augmentation.views
        with served.batcher.admitted(most, flow, time_left_s=left_s, hold=True) as place:
            for at in range(0, len(request.items), self._group):
                group = request.items[at : at + self._group]
                await self._classify(request, group, place, served, augmentation, response)
        return response

    async def _classify(
        self,
        request: teacher_pb2.ClassifyRequest,
        items: Sequence[items_pb2.ImageInput],
        place: Place,
        served: ServedModel,
        augmentation: Augmentation,
        response: teacher_pb2.ClassifyResponse,
    ) -> None:
        """Add the results of some items to the response."""

        async def prepare(item: items_pb2.ImageInput) -> _Views:
            data = await read_bytes(item, self._blobs, place.flow.project)
            work = partial(self._views, data, item.digest, served, augmentation)
            return await self._decoders.run(work, flow=place.flow)

        prepared = await each(items, prepare)
        squares = [s for one in prepared if isinstance(one, _Views) for s in one.squares]
        rows = await served.batcher.submit(squares, place=place)
        remaining = iter(rows)
        good = [one for one in prepared if isinstance(one, _Views)]
        spent = timings_of(rows, sum(one.preprocess_ms for one in good))
        with encoding(spent):
            for item, one in zip(items, prepared, strict=True):
                if isinstance(one, status_pb2.Status):
                    response.results.add(item_id=item.item_id, error=one)
                    continue
                answers = [next(remaining).result for _ in one.squares]
                response.results.add(
                    item_id=item.item_id, classification=_answer(answers, served, request)
                )
        response.timings.CopyFrom(together([response.timings, spent]))

    def _views(
        self, data: bytes, digest: str, served: ServedModel, augmentation: Augmentation
    ) -> _Views:
        started_s = time.perf_counter()
        image = images.decode(data, self._limits)
        name, preprocessing = digest or digest_of(data), served.classifier.preprocessing
        stage = served.classifier.compute.stage
        squares = [
            stage(as_square(view_pixels(image, name, view, augmentation, preprocessing)))
            for view in range(augmentation.views)
        ]
        spent_s = time.perf_counter() - started_s
        metrics.DECODE_SECONDS.observe(spent_s)
        return _Views(squares, spent_s * 1000)


def check_outputs_fit(
    request: teacher_pb2.ClassifyRequest,
    classes: int,
    feature_dim: int,
    augmentation: Augmentation,
    max_bytes: int,
) -> None:
    """Raise InvalidInput for views the answer to which would be too large to be sent."""
    sizes = {
        teacher_pb2.CLASSIFY_OUTPUT_LOGITS: 4 * classes,
        teacher_pb2.CLASSIFY_OUTPUT_FEATURES: 2 * feature_dim,
    }
    wanted = sum(sizes.get(output, 0) for output in _outputs(request))
    size = wanted * augmentation.views * len(request.items)
    if size > 0.9 * max_bytes:  # the rest is for names and frames
        raise InvalidInput(
            f"augmentation.views: {augmentation.views} views of {len(request.items)} images "
            f"make {size >> 20} MiB of outputs; ask for fewer of either",
            field="augmentation.views",
        )


def checked_augmentation(request: teacher_pb2.ClassifyRequest) -> Augmentation:
    """Return the augmentation of a call. Raises InvalidInput where the call cannot have one."""
    if request.execution != items_pb2.EXECUTION_SHARD:
        raise InvalidInput("augmentation: needs EXECUTION_SHARD", field="execution")
    if request.cross_fitted:
        raise InvalidInput(
            "cross_fitted: held-out logits are known for images as they are, not for their views",
            field="cross_fitted",
        )
    return read_augmentation(request.augmentation)


def _outputs(
    request: teacher_pb2.ClassifyRequest,
) -> set[teacher_pb2.ClassifyOutput.ValueType]:
    return set(request.outputs) or {teacher_pb2.CLASSIFY_OUTPUT_LOGITS}


def _answer(
    rows: Sequence[Row], served: ServedModel, request: teacher_pb2.ClassifyRequest
) -> teacher_pb2.Classification:
    outputs = _outputs(request)
    answer = teacher_pb2.Classification()
    if teacher_pb2.CLASSIFY_OUTPUT_LOGITS in outputs:
        answer.logits.CopyFrom(to_message(np.stack([served.logits(row) for row in rows])))
    if teacher_pb2.CLASSIFY_OUTPUT_FEATURES in outputs:
        answer.features.CopyFrom(to_message(np.stack([row[1] for row in rows])))
    return answer
