"""Examples and presences of concepts, also of words that the student does not have."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from stillhouse.gateway.v1 import students_pb2 as pb

from services.common.errors import InvalidInput, Precondition
from services.common.manifest import Item, Manifest
from services.common.presence import presence
from services.common.shards import pack_regions
from services.common.tensors import Array
from services.gateway.class_presence import class_presences
from services.gateway.concept_examples import Words, search
from services.gateway.student_files import StudentFile, StudentFiles
from tests.gateway.student_world import (
    CLASSES,
    CONCEPTS,
    FRUIT,
    SEGMENTS,
    Gateway,
    N,
    World,
    refused,
    text_of,
)


async def presence_of(gateway: Gateway, text: Array) -> Array:
    """Presence [N, W] of embeddings [W, D] in all images, by the one definition."""
    version = await gateway.version()
    file = StudentFiles(gateway.world.blobs).load(
        "default", version.student_ref.weights_digest, version.student_ref.card_digest
    )
    rows = list(gateway.world.regions.values())
    offsets = np.arange(N + 1) * (1 + SEGMENTS)
    found = presence(np.concatenate(rows), offsets, text, file.image_mean, file.text_mean)
    return found.values


async def test_examples_are_the_strongest_images(gateway: Gateway) -> None:
    request = pb.ListConceptExamplesRequest(student=FRUIT, concepts=CONCEPTS[:2], page_size=5)
    examples = (await gateway.stub.ListConceptExamples(request)).examples
    assert [one.concept for one in examples] == [CONCEPTS[0]] * 5 + [CONCEPTS[1]] * 5
    version = await gateway.version()
    file = StudentFiles(gateway.world.blobs).load(
        "default", version.student_ref.weights_digest, version.student_ref.card_digest
    )
    rows = list(gateway.world.regions.values())
    offsets = np.arange(N + 1) * (1 + SEGMENTS)
    truth = presence(
        np.concatenate(rows), offsets, file.text, file.image_mean, file.text_mean
    ).values
    for column in (0, 1):
        shown = [one.presence for one in examples if one.concept == CONCEPTS[column]]
        assert shown == pytest.approx(np.sort(truth[:, column])[::-1][:5], abs=1e-6)
    for one in examples:
        assert hashlib.sha256(gateway.world.photos[one.item.item_id]).hexdigest() == one.item.digest
        assert 0 <= one.box.left < one.box.right <= 1


async def test_examples_of_one_class(gateway: Gateway) -> None:
    request = pb.ListConceptExamplesRequest(
        student=FRUIT, concepts=["red skin"], label="Pear", page_size=100
    )
    examples = (await gateway.stub.ListConceptExamples(request)).examples
    assert examples
    assert {one.item.item_id.split("/")[0] for one in examples} == {"Pear"}


async def test_a_foreign_word_is_embedded_and_measured(gateway: Gateway) -> None:
    """Means by numpy and AUC by scikit-learn, over train and val alone."""
    words = ["green skin", "waxy sheen"]
    request = pb.ListConceptExamplesRequest(student=FRUIT, concepts=[*words, words[1]])
    response = await gateway.stub.ListConceptExamples(request)
    assert gateway.concepts.asked_texts == ["waxy sheen"]
    assert [one.concept for one in response.presences] == words
    assert [one.known for one in response.presences] == [True, False]
    foreign = await presence_of(gateway, text_of("waxy sheen")[None])
    shown = [one.presence for one in response.examples if one.concept == "waxy sheen"]
    assert shown == pytest.approx(np.sort(foreign[:, 0])[::-1][:4], abs=1e-6)
    version = await gateway.version()
    ref = version.student_ref
    file = StudentFiles(gateway.world.blobs).load("default", ref.weights_digest, ref.card_digest)
    known = await presence_of(gateway, file.text[[CONCEPTS.index("green skin")]])
    kept = np.flatnonzero(np.arange(N) // 3 % 5 != 4)
    label = np.array(list(gateway.world.labels.values()))[kept]
    for values, found in zip((known, foreign), response.presences, strict=True):
        assert [one.label for one in found.classes] == list(CLASSES)
        for k, one in enumerate(found.classes):
            column = values[kept, 0]
            assert one.mean_presence == pytest.approx(column[label == k].mean(), abs=1e-6)
            assert one.auc == pytest.approx(roc_auc_score(label == k, column), abs=1e-9)


async def test_known_words_need_no_encoder(gateway: Gateway) -> None:
    gateway.concepts.encoder_digest = "f" * 64
    request = pb.ListConceptExamplesRequest(student=FRUIT, concepts=CONCEPTS[:1])
    assert (await gateway.stub.ListConceptExamples(request)).examples
    request.concepts.append("waxy sheen")
    error = await refused(gateway.stub.ListConceptExamples(request))
    assert isinstance(error, Precondition)
    assert "encoder" in error.message


def test_a_shard_without_a_region_is_passed_over(world: World) -> None:
    """The last image alone in its shard, and damaged."""
    file = StudentFiles(world.blobs).load(
        "default", world.made.weights_digest, world.made.card_digest
    )
    data = file.card["data"]
    manifest = Manifest.from_bytes(world.blobs.get("default", data["manifest"]))
    damaged = Item("Pear/damaged.jpg", "0" * 64, "train", (1,))
    longer = replace(manifest, items=(*manifest.items, damaged)).to_bytes()
    more = {
        "manifest": world.blobs.put("default", longer),
        "region_shards": [
            *data["region_shards"], world.blobs.put("default", pack_regions([None])),
        ],
    }  # fmt: skip
    words = Words(CONCEPTS[:1], file.text[:1], [True])

    def found(student: StudentFile) -> pb.ListConceptExamplesResponse:
        return search(world.blobs, "default", student, words, label="", count=3, spec=None)

    assert found(replace(file, card=file.card | {"data": more})) == found(file)


@pytest.mark.parametrize("words", [[], ["x"] * 257, [" "], ["red skin", "x" * 1001]])
async def test_words_that_are_refused(gateway: Gateway, words: list[str]) -> None:
    request = pb.ListConceptExamplesRequest(student=FRUIT, concepts=words)
    assert isinstance(await refused(gateway.stub.ListConceptExamples(request)), InvalidInput)


@pytest.mark.parametrize("seed", range(5))
def test_auc_with_ties_is_that_of_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = np.maximum(rng.integers(-3, 4, 200) / 4, 0).astype(np.float32)
    marks = rng.random((200, 3)) < (0.05, 0.5, 0.9)
    for k, one in enumerate(class_presences(values, marks, CLASSES)):
        assert one.auc == pytest.approx(roc_auc_score(marks[:, k], values), abs=1e-12)
        assert one.mean_presence == pytest.approx(values[marks[:, k]].mean())


def test_a_class_of_nothing_or_everything_says_nothing() -> None:
    values = np.array([0.1, 0.7, 0.2], np.float32)
    marks = np.array([[False, True], [False, True], [False, True]])
    none, every = class_presences(values, marks, ["none", "every"])
    assert (none.mean_presence, none.auc, every.auc) == (0.0, 0.5, 0.5)
