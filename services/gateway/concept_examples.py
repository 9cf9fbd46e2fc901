"""Where concepts are strongest in a student's data, and how present in each class. Blocking."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from stillhouse.gateway.v1 import students_pb2 as pb

from services.common import images
from services.common.blobs import BlobStore
from services.common.catalogue import InputSpec
from services.common.errors import Precondition
from services.common.manifest import Manifest
from services.common.presence import Presence, presence
from services.common.shards import RegionTable, unpack_regions
from services.common.tensors import Array
from services.gateway.class_presence import class_marks, class_presences, seen_items
from services.gateway.region_boxes import WHOLE, frame_of, region_box, upright_size
from services.gateway.student_files import StudentFile


@dataclass(frozen=True)
class Words:
    """Words to look for and their embeddings [W, D]; `known` says which the student has."""

    names: Sequence[str]
    text: Array
    known: Sequence[bool]


@dataclass(frozen=True, order=True)
class _Found:
    """One image's presence of a concept; ordered by presence, then by place in the manifest."""

    presence: float
    minus_item: int
    region: int
    region_map: Array = field(compare=False)


def search(
    blobs: BlobStore,
    project: str,
    student: StudentFile,
    words: Words,
    *,
    label: str,
    count: int,
    spec: InputSpec | None,
) -> pb.ListConceptExamplesResponse:
    """Return up to `count` examples per word, strongest first, all above zero, and presences.

    Region shards are read one at a time. `label` limits the examples to images of one class; empty
    takes all. Presences are those of train and val, in every class.
    Raises InvalidInput for a class that the student does not have.
    """
    manifest = Manifest.from_bytes(blobs.get(project, str(_data(student)["manifest"])))
    allowed = _allowed(manifest, label, student)
    best: list[list[_Found]] = [[] for _ in words.names]
    values = np.zeros((len(manifest.items), len(words.names)), np.float32)
    valid = np.zeros(len(manifest.items), bool)
    first = 0
    for digest in _data(student)["region_shards"]:
        table = unpack_regions([blobs.get(project, str(digest))], allow_empty=True)
        items = np.flatnonzero(table.valid)
        if len(items):
            scores = _presence(table, items, student, words.text)
            values[first + items], valid[first + items] = scores.values, True
            _keep(best, scores, table, (items, allowed[first + items]), first, count)
        first += len(table.valid)
    examples = [
        _example(blobs, project, manifest, word, found, spec)
        for word, kept in zip(words.names, best, strict=True)
        for found in sorted(kept, reverse=True)
    ]
    presences = _presences(manifest, student, words, values, valid)
    return pb.ListConceptExamplesResponse(examples=examples, presences=presences)


def _presences(
    manifest: Manifest, student: StudentFile, words: Words, values: Array, valid: Array
) -> list[pb.ConceptPresence]:
    seen = seen_items(manifest, valid)
    marks = class_marks(manifest, student.classes)[seen]
    return [
        pb.ConceptPresence(
            concept=word,
            known=words.known[at],
            classes=class_presences(values[seen, at], marks, student.classes),
        )
        for at, word in enumerate(words.names)
    ]


def _data(student: StudentFile) -> dict[str, list[str]]:
    data = student.card.get("data", {})
    if not data.get("region_shards"):
        raise Precondition("the student's card names no region shards to search")
    return dict(data)


def _allowed(manifest: Manifest, label: str, student: StudentFile) -> Array:
    if not label:
        return np.ones(len(manifest.items), bool)
    name = student.classes[student.class_index(label)]
    wanted = manifest.classes.index(name) if name in manifest.classes else -1
    return np.array([wanted in item.labels for item in manifest.items], bool)


def _presence(table: RegionTable, items: Array, student: StudentFile, text: Array) -> Presence:
    rows = [table.item(i)[:1] if student.whole_image_only else table.item(i) for i in items]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    return presence(
        np.concatenate(rows),
        offsets,
        text,
        student.image_mean,
        student.text_mean,
    )


def _keep(
    best: list[list[_Found]],
    scores: Presence,
    table: RegionTable,
    scored: tuple[Array, Array],
    first: int,
    count: int,
) -> None:
    """Put a shard's strongest images into the heaps of `count` each.

    `scored` is the items' numbers in the shard, and which of them may be shown.
    """
    items, allowed = scored
    for column, heap in enumerate(best):
        values = np.where(allowed, scores.values[:, column], 0.0)
        for at in np.argsort(-values, kind="stable")[:count]:
            if values[at] <= 0:
                break
            item, region = int(items[at]), int(scores.region[at, column])
            found = _Found(float(values[at]), -(first + item), region, table.maps[item])
            if len(heap) < count:
                heapq.heappush(heap, found)
            else:
                heapq.heappushpop(heap, found)


def _example(
    blobs: BlobStore,
    project: str,
    manifest: Manifest,
    word: str,
    found: _Found,
    spec: InputSpec | None,
) -> pb.ConceptExample:
    item = manifest.items[-found.minus_item]
    try:
        frame = frame_of(upright_size(blobs.get(project, item.digest)), spec)
    except images.ImageError:
        frame = WHOLE
    return pb.ConceptExample(
        concept=word,
        item=pb.DatasetItemRef(item_id=item.item_id, digest=item.digest),
        presence=found.presence,
        box=region_box(found.region_map, found.region, frame),
    )
