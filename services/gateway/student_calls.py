"""Predict and explain photos with a student: regions from ConceptsService, answers from
StudentService."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from google.rpc import status_pb2
from stillhouse.common.v1 import items_pb2
from stillhouse.concepts.v1 import concepts_pb2
from stillhouse.gateway.v1 import students_pb2 as pb
from stillhouse.student.v1 import student_pb2

from services.common import images, inputs, tensors
from services.common.blobs import BlobStore
from services.common.catalogue import Catalogue
from services.common.errors import Internal, Precondition, StillhouseError
from services.common.timings import together
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

CHUNK_ITEMS = 32
CHUNK_BYTES = 8 << 20
_EMBED_S = 120.0
_STUDENT_S = 60.0


@dataclass(frozen=True)
class Serving:
    """A student version that answers: where it is, its files and its encoder."""

    project: str
    encoder: str
    ref: student_pb2.StudentRef
    file: StudentFile


@dataclass(frozen=True)
class Regions:
    """One image's regions, [R, D] float16, and its map [h, w] uint8."""

    embeddings: tensors.Array
    map: tensors.Array


Outcome: TypeAlias = "Regions | status_pb2.Status"


def serving(student: StudentRow, ref: student_pb2.StudentRef, file: StudentFile) -> Serving:
    """Return what the calls below need of a student's version."""
    return Serving(student.project, student.encoder, ref, file)


class StudentCalls:
    """Online calls on images. An item that fails becomes a status and harms no other."""

    def __init__(self, peers: Peers, blobs: BlobStore, catalogue: Catalogue) -> None:
        self._peers = peers
        self._blobs = blobs
        self._catalogue = catalogue

    async def predict(
        self, student: Serving, items: Sequence[items_pb2.ImageInput]
    ) -> tuple[list[student_pb2.PredictResult], items_pb2.Timings]:
        """Return one result per item, in order, and what they took."""
        found, spent = await self._regions(student, items)
        request = student_pb2.PredictRequest(
            project=student.project, student=student.ref, items=_inputs(items, found, student.file)
        )
        answered = student_pb2.PredictResponse()
        if request.items:
            method = self._peers.student.Predict
            answered = await self._peers.ask(method, request, timeout_s=_STUDENT_S)
        left = iter(answered.results)
        results = []
        for item, one in zip(items, found, strict=True):
            failed = isinstance(one, status_pb2.Status)
            result = student_pb2.PredictResult(error=one) if failed else next(left)
            result.item_id = item.item_id
            results.append(result)
        return results, together([*spent, answered.timings])

    async def explain(
        self, student: Serving, items: Sequence[items_pb2.ImageInput], label: str, top: int
    ) -> tuple[list[pb.ImageExplanation], items_pb2.Timings]:
        """Return one explanation per item, in order, with the boxes of its regions, and what they
        took."""
        (found, spent), frames = await asyncio.gather(
            self._regions(student, items),
            asyncio.gather(*(self._frame(student, item) for item in items)),
        )
        request = student_pb2.ExplainRequest(
            project=student.project,
            student=student.ref,
            items=_inputs(items, found, student.file),
            label=label,
            top=top,
        )
        answered = student_pb2.ExplainResponse()
        if request.items:
            method = self._peers.student.Explain
            answered = await self._peers.ask(method, request, timeout_s=_STUDENT_S)
        left = iter(answered.results)
        results = [
            _explained(item, one, None if isinstance(one, status_pb2.Status) else next(left), frame)
            for item, one, frame in zip(items, found, frames, strict=True)
        ]
        return results, together([*spent, answered.timings])

    async def _regions(
        self, student: Serving, items: Sequence[items_pb2.ImageInput]
    ) -> tuple[list[Outcome], list[items_pb2.Timings]]:
        found: list[Outcome] = []
        spent: list[items_pb2.Timings] = []
        async for chunk in _chunks(items):
            request = concepts_pb2.EmbedRegionsRequest(encoder=student.encoder, items=chunk)
            method = self._peers.concepts.EmbedRegions
            response = await self._peers.ask(method, request, timeout_s=_EMBED_S)
            now = {
                "encoder_digest": response.encoder_digest,
                "region_digest": response.region_digest,
            }
            check_encoder(student.file, now)
            found += [_outcome(result) for result in response.results]
            spent.append(response.timings)
        if len(found) != len(items):
            raise Internal("the encoder answered with another number of items")
        return found, spent

    async def _frame(self, student: Serving, item: items_pb2.ImageInput) -> Frame:
        """The part of the image that the encoder sees; the whole image where it cannot be read."""
        spec = input_of(self._catalogue, student.encoder.rsplit("/", 1)[-1])
        try:
            data = await inputs.read_bytes(item, self._blobs, student.project)
            return frame_of(await asyncio.to_thread(upright_size, data), spec)
        except (images.ImageError, StillhouseError):  # its result says what is wrong with it
            return WHOLE


async def _chunks(
    items: Sequence[items_pb2.ImageInput],
) -> AsyncIterator[list[items_pb2.ImageInput]]:
    """Cut a batch so that each part fits a message."""
    chunk: list[items_pb2.ImageInput] = []
    size = 0
    for item in items:
        if chunk and (len(chunk) >= CHUNK_ITEMS or size + len(item.data) > CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(item)
        size += len(item.data)
    if chunk:
        yield chunk


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
