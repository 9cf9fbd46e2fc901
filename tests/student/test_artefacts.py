"""Students as files: what is written is what is read, and damaged or foreign files are refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from stillhouse.student.v1 import student_pb2

from services.common.blobs import BlobStore, digest_of
from services.common.errors import InvalidInput, NotFound
from services.common.tensors import pack_arrays, unpack_arrays
from services.student.artefacts import Student, probabilities, read_student, write_student
from services.student.data import TextBank
from services.student.library import Library, Recent


def make_student(
    *, loss: str = "softmax", whole_image_only: bool = False, seed: int = 0
) -> Student:
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(3, 7)).astype(np.float32) * (rng.random((3, 7)) < 0.6)
    bank = TextBank(
        rng.normal(size=(7, 5)).astype(np.float16),
        rng.normal(size=5).astype(np.float32) * 0.1,
        rng.normal(size=5).astype(np.float32) * 0.1,
    )
    card = {
        "classes": ["a", "b", "c"],
        "concepts": ["red", "green", "round", "striped", "large", "stem", "peel"],
        "loss": loss,
        "whole_image_only": whole_image_only,
    }
    mean, std = rng.random(7).astype(np.float32), rng.random(7).astype(np.float32) + 0.1
    return Student(weight, rng.normal(size=3).astype(np.float32), mean, std, bank, card)


@pytest.fixture
def blobs(tmp_path):
    return BlobStore(str(tmp_path))


def same(one: Student, two: Student) -> bool:
    arrays = ("weight", "bias", "mean", "std")
    banks = ("text", "text_mean", "image_mean")
    return all(np.array_equal(getattr(one, name), getattr(two, name)) for name in arrays) and all(
        np.array_equal(getattr(one.bank, name), getattr(two.bank, name)) for name in banks
    )


def test_what_is_written_is_read(blobs):
    student = make_student()
    ref = write_student(blobs, "default", student)
    found = read_student(blobs, "default", ref)
    assert same(found, student)
    assert found.card == {**student.card, "weights": ref.weights_digest}


def test_digest_covers_numbers_alone(blobs):
    student = make_student()
    renamed = replace(student, card={**student.card, "seed": 7})
    one, two = (write_student(blobs, "default", each) for each in (student, renamed))
    assert one.weights_digest == two.weights_digest
    assert one.card_digest != two.card_digest
    moved = replace(student, bias=student.bias + np.float32(1e-6))
    assert write_student(blobs, "default", moved).weights_digest != one.weights_digest


def test_card_of_another_student_is_refused(blobs):
    one = write_student(blobs, "default", make_student(seed=0))
    two = write_student(blobs, "default", make_student(seed=1))
    mixed = student_pb2.StudentRef(weights_digest=one.weights_digest, card_digest=two.card_digest)
    with pytest.raises(InvalidInput, match="another student"):
        read_student(blobs, "default", mixed)


def test_unknown_digest_is_not_found_also_in_another_project(blobs):
    ref = write_student(blobs, "default", make_student())
    with pytest.raises(NotFound):
        read_student(blobs, "other", ref)


@pytest.mark.parametrize(
    "damage",
    [
        lambda arrays: arrays.update(weight=arrays["weight"][:, :-1]),
        lambda arrays: arrays.update(bias=arrays["bias"][:-1]),
        lambda arrays: arrays["weight"].__setitem__((0, 0), np.nan),
        lambda arrays: arrays["mean"].__setitem__(0, np.inf),
        lambda arrays: arrays["std"].__setitem__(0, 0),
        lambda arrays: arrays["text"].__setitem__((0, 0), np.nan),
        lambda arrays: arrays.update(text=arrays["text"][:, :-1]),
        lambda arrays: arrays.update(text=arrays["text"].reshape(-1)),
        lambda arrays: arrays.pop("image_mean"),
        lambda arrays: arrays.update(more=arrays["bias"]),
    ],
)
def test_damaged_weights_are_refused(blobs, damage):
    ref = write_student(blobs, "default", make_student())
    arrays = {
        k: v.copy() for k, v in unpack_arrays(blobs.get("default", ref.weights_digest)).items()
    }
    damage(arrays)
    card = json.loads(blobs.get("default", ref.card_digest))
    ref.weights_digest = card["weights"] = blobs.put("default", pack_arrays(arrays))
    ref.card_digest = blobs.put("default", json.dumps(card).encode())
    with pytest.raises(InvalidInput):
        read_student(blobs, "default", ref)


@pytest.mark.parametrize(
    "card",
    [
        b"",
        b"\xff",
        b"[]",
        b"[" * 100_000,
        b'{"classes": ["a"], "concepts": "word", "loss": "bce"}',
        b'{"classes": ["a"], "concepts": ["b"], "loss": "hinge"}',
        b'{"classes": ["a"], "concepts": ["b"], "loss": "bce"}',
        b'{"classes": [1], "concepts": ["b"], "loss": "bce"}',
    ],
)
def test_damaged_cards_are_refused(blobs, card):
    ref = write_student(blobs, "default", make_student())
    ref.card_digest = blobs.put("default", card)
    with pytest.raises(InvalidInput):
        read_student(blobs, "default", ref)


@pytest.mark.parametrize(
    "data", [b"", b"\x00" * 7, b"\xff" * 64, b"\x10" + b"\x00" * 7 + b"{" * 16]
)
def test_bytes_that_are_not_safetensors_are_refused(blobs, data):
    ref = write_student(blobs, "default", make_student())
    ref.weights_digest = blobs.put("default", data)
    with pytest.raises(InvalidInput):
        read_student(blobs, "default", ref)


def test_near_names_are_suggested():
    student = make_student()
    assert student.concept_index("striped") == 3
    with pytest.raises(InvalidInput, match="did you mean 'striped'"):
        student.concept_index("stripes")
    with pytest.raises(InvalidInput, match="there is no class 'zebra'$"):
        student.class_index("zebra")


def test_probabilities_of_extreme_logits_are_finite():
    logits = np.array([[1e4, -1e4, 0.0]])
    assert np.array_equal(probabilities(logits, "softmax"), [[1.0, 0.0, 0.0]])
    assert np.array_equal(probabilities(logits, "bce"), [[1.0, 0.0, 0.5]])


def test_library_keeps_the_last_used_and_forgets_failures(blobs):
    library = Library(blobs, students=1, tables=1)
    ref = write_student(blobs, "default", make_student())
    assert library.student("default", ref) is library.student("default", ref)
    absent = student_pb2.StudentRef(weights_digest=digest_of(b""), card_digest=digest_of(b""))
    with pytest.raises(NotFound):
        library.student("default", absent)
    with pytest.raises(NotFound):
        library.student("other", ref)


def test_recent_drops_the_oldest():
    made: list[str] = []
    recent: Recent[str] = Recent(2)

    def make(name: str) -> str:
        made.append(name)
        return name

    for name in ("a", "b", "a", "c", "a", "b"):
        assert recent.get(name, lambda name=name: make(name)) == name
    assert made == ["a", "b", "c", "b"]
