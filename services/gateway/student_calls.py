"""Predict and explain photos with a student: regions from ConceptsService, answers from
StudentService."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from google.rpc import status_pb2
from stillhouse.common.v1 import items_pb2
from stillhouse.concepts.v1 import concepts_pb2
from stillhouse.gateway.v1 import students_pb2 as pb
from stillhouse.student.v1 import student_pb2

from services.common import images, inputs, tensors
from services.common.blobs import BlobStore, is_digest
from services.common.catalogue import Catalogue
from services.common.errors import Internal, Precondition, StillhouseError
from services.common.timings import together
from services.gateway.cache import EmbeddingCache, Regions
from services.gateway.keys import RegionSpace
from services.gateway.peers import Peers
from services.gateway.region_boxes import (
    WHOLE,
    Frame,
    frame_of,
    input_of,
    region_boxes,
    upright_size,
)
from services.gateway.store import StudentRow
from services.gateway.student_files import StudentFile

_REGIONS_BYTES = 32 << 10
"""What the regions of an image take in a message."""
_EMBED_S = 120.0
_STUDENT_S = 60.0
_SPACE = ("encoder_digest", "preprocessing_digest", "region_digest")
"""What region embeddings depend on, by their names in a student's provenance."""


@dataclass(frozen=True)
class Serving:
    """A student version that answers: where it is, its files and its encoder."""

    project: str
    encoder: str
    ref: student_pb2.StudentRef
    file: StudentFile


Outcome: TypeAlias = "Regions | status_pb2.Status"


def serving(student: StudentRow, ref: student_pb2.StudentRef, file: StudentFile) -> Serving:
    """Return what the calls below need of a student's version."""
    return Serving(student.project, student.encoder, ref, file)


class StudentCalls:
    """Online calls on images. An item that fails becomes a status and harms no other."""

    def __init__(
        self, peers: Peers, blobs: BlobStore, catalogue: Catalogue, cache: EmbeddingCache
    ) -> None:
        self._peers = peers
        self._blobs = blobs
        self._catalogue = catalogue
        self._cache = cache

    async def predict(
        self, student: Serving, items: Sequence[items_pb2.ImageInput]
    ) -> tuple[list[student_pb2.PredictResult], items_pb2.Timings]:
        """Return one result per item, in order, and what they took."""
        found, spent = await self.regions(student, items)
        answered, also_spent = await self.ask_predict(student, items, found)
        left = iter(answered)
        results = []
        for item, one in zip(items, found, strict=True):
            failed = isinstance(one, status_pb2.Status)
            result = student_pb2.PredictResult(error=one) if failed else next(left)
            result.item_id = item.item_id
            results.append(result)
        return results, together([spent, also_spent])

    async def explain(
        self, student: Serving, items: Sequence[items_pb2.ImageInput], label: str, top: int
    ) -> tuple[list[pb.ImageExplanation], items_pb2.Timings]:
        """Return one explanation per item, in order, with the boxes of its regions, and what they
        took."""
        (found, spent), frames = await asyncio.gather(
            self.regions(student, items),
            asyncio.gather(*(self._frame(student, item) for item in items)),
        )
        answered, also_spent = await self.ask_explain(student, items, found, label, top)
        left = iter(answered)
        results = [
            _explained(item, one, None if isinstance(one, status_pb2.Status) else next(left), frame)
            for item, one, frame in zip(items, found, frames, strict=True)
        ]
        return results, together([spent, also_spent])

    async def ask_predict(
        self, student: Serving, items: Sequence[items_pb2.ImageInput], found: Sequence[Outcome]
    ) -> tuple[list[student_pb2.PredictResult], items_pb2.Timings]:
        """Return the results of the items that have regions, in order, and what they took."""
        answered: list[student_pb2.PredictResult] = []
        spent: list[items_pb2.Timings] = []
        for part in await self._student_parts(_inputs(items, found, student.file)):
            request = student_pb2.PredictRequest(
                project=student.project, student=student.ref, items=part
            )
            method = self._peers.student.Predict
            response = await self._peers.ask(method, request, timeout_s=_STUDENT_S)
            answered += response.results
            spent.append(response.timings)
        return answered, together(spent)

    async def ask_explain(
        self,
        student: Serving,
        items: Sequence[items_pb2.ImageInput],
        found: Sequence[Outcome],
        label: str,
        top: int,
    ) -> tuple[list[student_pb2.ExplainResult], items_pb2.Timings]:
        """Return the results of the items that have regions, in order, and what they took."""
        answered: list[student_pb2.ExplainResult] = []
        spent: list[items_pb2.Timings] = []
        for part in await self._student_parts(_inputs(items, found, student.file)):
            request = student_pb2.ExplainRequest(
                project=student.project, student=student.ref, items=part, label=label, top=top
            )
            method = self._peers.student.Explain
            response = await self._peers.ask(method, request, timeout_s=_STUDENT_S)
            answered += response.results
            spent.append(response.timings)
        return answered, together(spent)

    async def regions(
        self, student: Serving, items: Sequence[items_pb2.ImageInput]
    ) -> tuple[list[Outcome], items_pb2.Timings]:
        """Regions of every item, or why there are none, and what they took. What a job has embedded
        is not embedded again; what is embedded here is not kept, since no job may depend on our
        batches. Raises Precondition where the encoder is not the student's."""
        known = await self._known(student, items)
        missing = [item for item, one in zip(items, known, strict=True) if one is None]
        fresh: list[Outcome] = []
        spent: list[items_pb2.Timings] = []
        for part in await self._peers.parts("concepts", missing, _item_bytes):
            request = concepts_pb2.EmbedRegionsRequest(encoder=student.encoder, items=part)
            method = self._peers.concepts.EmbedRegions
            response = await self._peers.ask(method, request, timeout_s=_EMBED_S)
            now = {
                "encoder_digest": response.encoder_digest,
                "region_digest": response.region_digest,
            }
            check_encoder(student.file, now)
            fresh += [_outcome(result) for result in response.results]
            spent.append(response.timings)
        if len(fresh) != len(missing):
            raise Internal("the encoder answered with another number of items")
        left = iter(fresh)
        return [next(left) if one is None else one for one in known], together(spent)

    async def _known(
        self, student: Serving, items: Sequence[items_pb2.ImageInput]
    ) -> list[Regions | None]:
        """Regions in the cache, of items that come by digest."""
        known: list[Regions | None] = [None] * len(items)
        origin = student.file.provenance
        digests = [item.digest if is_digest(item.digest) else "" for item in items]
        asked = [at for at, digest in enumerate(digests) if digest]
        if not asked or not all(origin.get(name) for name in _SPACE):
            return known
        space = RegionSpace(student.project, *(origin[name] for name in _SPACE)).check()
        rows = await self._cache.get(space, [digests[at] for at in asked])
        for at, row in zip(asked, rows, strict=True):
            known[at] = row
        return known

    async def _student_parts(
        self, found: Sequence[student_pb2.RegionInput]
    ) -> list[list[student_pb2.RegionInput]]:
        return await self._peers.parts("student", found, lambda one: one.ByteSize())

    async def _frame(self, student: Serving, item: items_pb2.ImageInput) -> Frame:
        """The part of the image that the encoder sees; the whole image where it cannot be read."""
        spec = input_of(self._catalogue, student.encoder.rsplit("/", 1)[-1])
        try:
            data = await inputs.read_bytes(item, self._blobs, student.project)
            return frame_of(await asyncio.to_thread(upright_size, data), spec)
        except (images.ImageError, StillhouseError):  # its result says what is wrong with it
            return WHOLE


def _item_bytes(item: items_pb2.ImageInput) -> int:
    return max(item.ByteSize(), _REGIONS_BYTES)


def check_encoder(file: StudentFile, now: Mapping[str, str]) -> None:
    """Raise Precondition where the encoder or its regions are not those of the training.

    `now` holds digests by their name in the student's provenance.
    """
    differences = {
        key: f"{got[:12]} instead of {file.provenance[key][:12]}"
        for key, got in now.items()
        if file.provenance.get(key) and got and got != file.provenance[key]
    }
    if differences:
        raise Precondition(
            "the encoder is not the one that the student was made with; distil again, or serve the "
            "encoder of then",
            differences=differences,
        )


def _outcome(result: concepts_pb2.EmbedRegionsResult) -> Outcome:
    if result.WhichOneof("outcome") != "regions":
        return result.error
    rows = tensors.from_message(result.regions.embeddings, field="regions.embeddings")
    cells = tensors.from_message(result.regions.map, field="regions.map")
    tensors.expect(rows, shape=(None, None), field="regions.embeddings")
    return Regions(rows, tensors.expect(cells, shape=(None, None), field="regions.map"))


def _inputs(
    items: Sequence[items_pb2.ImageInput], found: Sequence[Outcome], file: StudentFile
) -> list[student_pb2.RegionInput]:
    rows = slice(0, 1) if file.whole_image_only else slice(None)
    return [
        student_pb2.RegionInput(
            item_id=item.item_id, embeddings=tensors.to_message(one.embeddings[rows])
        )
        for item, one in zip(items, found, strict=True)
        if isinstance(one, Regions)
    ]


def _explained(
    item: items_pb2.ImageInput,
    one: Outcome,
    result: student_pb2.ExplainResult | None,
    frame: Frame,
) -> pb.ImageExplanation:
    message = pb.ImageExplanation(item_id=item.item_id)
    if isinstance(one, status_pb2.Status):
        message.error.CopyFrom(one)
    elif result is None or result.WhichOneof("outcome") != "explanation":
        message.error.CopyFrom(result.error if result else Internal("no answer").to_status())
    else:
        message.explanation.CopyFrom(result.explanation)
        message.boxes.extend(region_boxes(one.map, len(one.embeddings), frame))
    return message
