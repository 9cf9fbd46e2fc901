"""Students and the data they were made from, kept in memory while they are in use."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from stillhouse.common.v1 import items_pb2
from stillhouse.student.v1 import student_pb2

from services.common.blobs import BlobStore, check_digest
from services.common.errors import InvalidInput, Precondition
from services.student.artefacts import Student, probabilities, read_student
from services.student.data import Doubles, Floats, Ints, Labels, read_concept_data
from services.student.design import Design
from services.student.folds import FoldFits, read_folds
from services.student.maps import class_regions

V = TypeVar("V")


class Recent(Generic[V]):
    """The `size` values used last; each is made once, also where several threads ask at a time."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._values: OrderedDict[Hashable, V] = OrderedDict()
        self._lock = threading.Lock()
        self._making: dict[Hashable, threading.Lock] = {}

    def get(self, key: Hashable, make: Callable[[], V]) -> V:
        """Return the value of `key`, made where it is not there; what `make` raises is not kept."""
        with self._lock:
            turn = self._making.setdefault(key, threading.Lock())
        with turn:
            with self._lock:
                if key in self._values:
                    self._values.move_to_end(key)
                    return self._values[key]
            try:
                value = make()
            finally:
                with self._lock:
                    self._making.pop(key, None)
            with self._lock:
                self._values[key] = value
                while len(self._values) > self._size:
                    self._values.popitem(last=False)
            return value

    def forget(self, chosen: Callable[[Hashable], bool], *, dry_run: bool = False) -> int:
        """Drop the values of chosen keys and return how many there were."""
        with self._lock:
            gone = [key for key in self._values if chosen(key)]
            for key in () if dry_run else gone:
                del self._values[key]
            return len(gone)

    def known(self) -> list[Hashable]:
        """Return the keys of what is in memory, the one used last at the end."""
        with self._lock:
            return list(self._values)


@dataclass(frozen=True)
class Table:
    """A student's data: presence [n, M], also standardised, and teacher responses [n, K] of all
    items, the rows `known` (train and val) that it was fitted to, and the direction of each
    class's mean region [K, D] among those."""

    key: Hashable
    labels: Labels
    presence: Floats
    columns: Doubles
    targets: Doubles
    known: Ints
    class_regions: Floats


@dataclass(frozen=True)
class Designs:
    """Design matrices of the known items: all of them, and without each fold."""

    whole: Design
    without: tuple[Design, ...]


class Library:
    """Thread-safe; every key begins with the project, so nothing leaks between projects."""

    def __init__(self, blobs: BlobStore, *, students: int, tables: int) -> None:
        self._blobs = blobs
        self._students: Recent[Student] = Recent(students)
        self._folds: Recent[FoldFits] = Recent(students)
        self._tables: Recent[Table] = Recent(tables)
        self._designs: Recent[Designs] = Recent(tables)

    def student(self, project: str, ref: student_pb2.StudentRef) -> Student:
        """Read a student. Raises NotFound, InvalidInput."""
        key = (project, ref.weights_digest, ref.card_digest)
        return self._students.get(key, lambda: read_student(self._blobs, project, ref))

    def students_of(self, project: str) -> list[student_pb2.StudentRef]:
        """Return the project's students in memory."""
        keys = [key for key in self._students.known() if isinstance(key, tuple)]
        return [
            student_pb2.StudentRef(weights_digest=weights, card_digest=card)
            for owner, weights, card in keys
            if owner == project
        ]

    def forget(self, project: str, *, dry_run: bool = False) -> int:
        """Drop all of a project and return how many students and tables there were."""

        def is_its(key: Hashable) -> bool:
            while isinstance(key, tuple) and key:  # a design's key begins with that of its table
                key = key[0]
            return key == project

        parts = (self._students, self._folds, self._tables, self._designs)
        return sum(one.forget(is_its, dry_run=dry_run) for one in parts)

    def table(self, project: str, student: Student) -> Table:
        """The data a student and all its tuned descendants share. Raises NotFound, InvalidInput,
        Precondition where they do not fit the student."""
        data, whole = _data_refs(student.card), bool(student.card.get("whole_image_only"))
        key = (project, data.SerializeToString(), whole, student.loss, _scale_digest(student))
        return self._tables.get(key, lambda: self._read_table(key, project, student, data, whole))

    def folds(self, project: str, student: Student, table: Table) -> FoldFits:
        """The student without each fold. Raises NotFound, InvalidInput, Precondition where it has
        none."""
        digest = student.card.get("fold_fits")
        if not isinstance(digest, str):
            raise Precondition("this student was stored without its fold fits; train it again")
        check_digest(digest, field="fold_fits")
        items, (classes, concepts) = len(table.known), student.weight.shape

        def read() -> FoldFits:
            return read_folds(self._blobs.get(project, digest), items, (classes, concepts))

        return self._folds.get((project, digest, items, classes, concepts), read)

    def designs(self, table: Table, folds: FoldFits) -> Designs:
        """Design matrices for refits around a student of this table."""

        def make() -> Designs:
            columns = table.columns[table.known]
            without = [Design(columns[folds.fold_of != f]) for f in range(len(folds.fits))]
            return Designs(Design(columns), tuple(without))

        return self._designs.get((table.key, folds.fold_of.tobytes()), make)

    def _read_table(
        self,
        key: Hashable,
        project: str,
        student: Student,
        data: student_pb2.TrainingData,
        whole: bool,
    ) -> Table:
        found = read_concept_data(self._blobs, project, data, whole_image_only=whole)
        if list(found.labels.classes) != student.classes:
            raise Precondition(
                "the student's classes are not those of its data",
                differences={"classes": f"{student.classes[:10]} of {found.labels.classes[:10]}"},
            )
        values, known = found.presence(student.bank), found.labels.rows("train", "val")
        return Table(
            key,
            found.labels,
            values,
            student.standardise(values),
            probabilities(found.logits, student.loss),
            known,
            class_regions(found, known, student.bank.image_mean),
        )


def _data_refs(card: dict[str, Any]) -> student_pb2.TrainingData:
    """The data a card names. Raises InvalidInput where it names none or no digests."""
    data = card.get("data")
    if not isinstance(data, dict):
        raise InvalidInput("card: names no data", field="card_digest")
    return student_pb2.TrainingData(
        manifest=_ref(data.get("manifest")),
        teacher_shards=_refs(data.get("teacher_shards")),
        region_shards=_refs(data.get("region_shards")),
    )


def _refs(digests: object) -> Sequence[items_pb2.BlobRef]:
    if not isinstance(digests, list) or not digests:
        raise InvalidInput("card: names no shards", field="card_digest")
    return [_ref(digest) for digest in digests]


def _ref(digest: object) -> items_pb2.BlobRef:
    return items_pb2.BlobRef(digest=check_digest(str(digest), field="card.data"))


def _scale_digest(student: Student) -> str:
    """Digest of all that turns regions into columns; an edit leaves it as it is."""
    sha, bank = hashlib.sha256(), student.bank
    for part in (bank.text, bank.text_mean, bank.image_mean, student.mean, student.std):
        sha.update(part.tobytes())
    return sha.hexdigest()
