"""The check before a job: what does not fit together is refused and says what differs."""

from __future__ import annotations

import pytest
from stillhouse.gateway.v1 import jobs_pb2 as pb
from stillhouse.teacher.v1 import teacher_pb2

from services.common.errors import InvalidInput, Precondition
from services.common.manifest import Item, Manifest
from services.gateway.jobs.checks import check_counts, check_labels
from services.gateway.jobs.control_words import control_words
from services.gateway.jobs.specs import check_spec

CLASSES = ("apple", "pear")
DATASET, TEACHER = "projects/default/datasets/d", "projects/default/models/m"


def model(*classes: str, single_label: bool = True) -> teacher_pb2.Model:
    spec = teacher_pb2.ImageClassifierSpec(classes=classes, single_label=single_label)
    return teacher_pb2.Model(name=TEACHER, image_classifier=spec)


def manifest(train: int = 20, test: int = 4, multi_label: bool = False) -> Manifest:
    items = [Item(f"{n}", "a" * 64, "train", (n % 2,)) for n in range(train)]
    items += [Item(f"t{n}", "b" * 64, "test", (n % 2,)) for n in range(test)]
    return Manifest(CLASSES, multi_label, tuple(items))


def test_the_same_classes_in_another_order_fit() -> None:
    check_labels(model("pear", "apple"), manifest(), DATASET)
    check_counts(manifest(), DATASET)


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        (model("apple", "plum"), ["does not know 'pear'", "does not have 'plum'"]),
        (model("apple"), ["does not know 'pear'"]),
        (model(*CLASSES, *"abcdefgh"), ["does not have 'a', 'b', 'c', 'd', 'e' and 3 more"]),
        (model(*CLASSES, single_label=False), ["several labels per image", "one label per image"]),
    ],
)
def test_what_differs_is_told(teacher: teacher_pb2.Model, words: list[str]) -> None:
    with pytest.raises(Precondition) as caught:
        check_labels(teacher, manifest(), DATASET)
    assert all(word in caught.value.message for word in words)
    assert caught.value.differences


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (manifest(test=0), "test split is empty"),
        (manifest(train=8), "8 images; 10 are needed"),
        (
            Manifest(CLASSES, False, tuple(i for i in manifest(40).items if i.labels == (0,))),
            "fewer than 2 images in train and val of 'pear'",
        ),
    ],
)
def test_a_dataset_that_is_too_small_is_refused(data: Manifest, words: str) -> None:
    with pytest.raises(Precondition, match=words):
        check_counts(data, DATASET)


@pytest.mark.parametrize(
    "spec",
    [
        pb.ConceptJobSpec(),
        pb.ConceptJobSpec(dataset=DATASET),
        pb.ConceptJobSpec(dataset="projects/other/datasets/d", teacher=TEACHER),
        pb.ConceptJobSpec(dataset=DATASET, teacher="projects/other/models/m"),
        pb.ConceptJobSpec(dataset=DATASET, teacher=TEACHER, nec=-1),
        pb.ConceptJobSpec(dataset=DATASET, teacher=TEACHER, l1=float("nan")),
        pb.ConceptJobSpec(dataset=DATASET, teacher=TEACHER, l1=0),
        pb.ConceptJobSpec(dataset=DATASET, teacher=TEACHER, student_id="../x"),
        pb.ConceptJobSpec(dataset=DATASET, teacher=TEACHER, encoder="effl2"),
    ],
)
def test_a_malformed_specification_is_refused(spec: pb.ConceptJobSpec) -> None:
    with pytest.raises(InvalidInput):
        check_spec("default", pb.DistillationJob(concept=spec))


def test_control_words_are_many_different_and_repeatable() -> None:
    words = control_words(3000, 1, avoid=["truth topic"])
    assert len(set(words)) == 3000
    assert words == control_words(3000, 1, avoid=["truth topic"])
    assert words != control_words(3000, 2)
    assert not set(words) & set(control_words(100, 1, avoid=words))
