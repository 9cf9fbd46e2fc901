"""Students in the blob store: a safetensors file of numbers and a JSON card of names.

    weight [K, M], bias [K], mean [M], std [M]   float32
    text [M, D] float16, text_mean [D], image_mean [D] float32

logits = ((presence - mean) / std) @ weight.T + bias. The digest of the safetensors file covers
numbers alone, so that the same data and settings give the same digest.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from stillhouse.student.v1 import student_pb2

from services.common.blobs import BlobStore
from services.common.errors import InvalidInput
from services.common.tensors import pack_arrays, unpack_arrays
from services.student.data import Doubles, Floats, TextBank, check_bank
from services.student.metrics import nec

Loss = Literal["softmax", "bce"]
Card = dict[str, Any]
_ARRAYS = {"weight", "bias", "mean", "std", "text", "text_mean", "image_mean"}


@dataclass(frozen=True)
class Student:
    """A sparse linear student over concept presence."""

    weight: Floats
    bias: Floats
    mean: Floats
    std: Floats
    bank: TextBank
    card: Card = field(compare=False)

    @property
    def classes(self) -> list[str]:
        """Names of the K classes."""
        return list(self.card["classes"])

    @property
    def concepts(self) -> list[str]:
        """The M words."""
        return list(self.card["concepts"])

    @property
    def loss(self) -> Loss:
        """The loss it was fitted with."""
        return "bce" if self.card["loss"] == "bce" else "softmax"

    @property
    def nec(self) -> float:
        """Mean number of non-zero weights per class."""
        return nec(self.weight)

    def standardise(self, values: npt.NDArray[np.float32]) -> Doubles:
        """Presence [n, M] to standardised presence, float64."""
        centred = values.astype(np.float64) - self.mean.astype(np.float64)
        return np.asarray(centred / self.std.astype(np.float64), dtype=np.float64)

    def logits(self, values: npt.NDArray[np.float32]) -> Doubles:
        """Logits float64 [n, K] of presence [n, M]."""
        weight, bias = self.weight.astype(np.float64), self.bias.astype(np.float64)
        return np.asarray(self.standardise(values) @ weight.T + bias, dtype=np.float64)

    def class_index(self, name: str, *, field: str = "label") -> int:
        """Position of a class. Raises InvalidInput with near matches."""
        return index_of(name, self.classes, "class", field)

    def concept_index(self, name: str, *, field: str = "concept") -> int:
        """Position of a concept. Raises InvalidInput with near matches."""
        return index_of(name, self.concepts, "concept", field)


def index_of(name: str, names: Sequence[str], what: str, where: str) -> int:
    """Position of `name`; InvalidInput names the nearest where there is none."""
    if name in names:
        return list(names).index(name)
    near = difflib.get_close_matches(name[:100], names, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(repr(one) for one in near)}?" if near else ""
    raise InvalidInput(f"{where}: there is no {what} {name[:100]!r}{hint}", field=where)


def probabilities(logits: Doubles, loss: Loss) -> Doubles:
    """Softmax or sigmoid of logits [n, K], float64."""
    if loss == "bce":
        tail = np.exp(-np.abs(logits))
        return np.asarray(np.where(logits >= 0, 1.0, tail) / (1.0 + tail), dtype=np.float64)
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True), dtype=np.float64)


def write_student(blobs: BlobStore, project: str, student: Student) -> student_pb2.StudentRef:
    """Store a student; its card gets the weights' digest. Returns its reference."""
    weights = pack_arrays(
        {
            "weight": student.weight.astype("<f4", copy=False),
            "bias": student.bias.astype("<f4", copy=False),
            "mean": student.mean.astype("<f4", copy=False),
            "std": student.std.astype("<f4", copy=False),
            "text": student.bank.text.astype("<f2", copy=False),
            "text_mean": student.bank.text_mean.astype("<f4", copy=False),
            "image_mean": student.bank.image_mean.astype("<f4", copy=False),
        }
    )
    digest = blobs.put(project, weights)
    card = {**student.card, "weights": digest}
    return student_pb2.StudentRef(
        weights_digest=digest, card_digest=blobs.put(project, to_json(card))
    )


def read_student(blobs: BlobStore, project: str, ref: student_pb2.StudentRef) -> Student:
    """Read and check a student. Raises NotFound, InvalidInput where it is damaged or a card of
    another.
    """
    arrays = unpack_arrays(blobs.get(project, ref.weights_digest), what="student")
    if set(arrays) != _ARRAYS:
        raise InvalidInput(
            f"student: needs tensors {sorted(_ARRAYS)}, has {sorted(arrays)[:20]}", field="student"
        )
    floats = {name: arrays[name].astype(np.float32, copy=False) for name in _ARRAYS - {"text"}}
    bank = TextBank(
        arrays["text"].astype(np.float16, copy=False), floats["text_mean"], floats["image_mean"]
    )
    card = _card(blobs.get(project, ref.card_digest), ref.weights_digest)
    student = Student(floats["weight"], floats["bias"], floats["mean"], floats["std"], bank, card)
    _check(student)
    return student


def to_json(value: Card) -> bytes:
    """Canonical JSON: equal values give equal bytes. Raises ValueError for NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def _card(data: bytes, weights_digest: str) -> Card:
    try:
        card = json.loads(data)
    except (ValueError, RecursionError):
        raise InvalidInput("card: not JSON", field="card_digest") from None
    if not isinstance(card, dict):
        raise InvalidInput("card: not a JSON object", field="card_digest")
    for name in ("classes", "concepts"):
        names = card.get(name)
        if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
            raise InvalidInput(f"card: `{name}` is not a list of names", field="card_digest")
    if card.get("loss") not in ("softmax", "bce"):
        raise InvalidInput("card: `loss` is neither softmax nor bce", field="card_digest")
    if card.get("weights", weights_digest) != weights_digest:
        raise InvalidInput("card: belongs to another student", field="card_digest")
    return card


def _check(student: Student) -> None:
    weight, (classes, concepts) = student.weight, (student.classes, student.concepts)
    want = (len(classes), len(concepts))
    vectors = (student.mean.shape, student.std.shape)
    if weight.shape != want or student.bias.shape != want[:1] or set(vectors) != {want[1:]}:
        raise InvalidInput(
            f"student: weight {weight.shape} for {want[0]} classes and {want[1]} concepts",
            field="student",
        )
    check_bank(student.bank, want[1])
    parts = (weight, student.bias, student.mean, student.std)
    if not all(np.isfinite(part).all() for part in parts) or not (student.std > 0).all():
        raise InvalidInput("student: holds NaN, infinity or a spread of zero", field="student")
