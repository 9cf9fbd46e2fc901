"""The filters of Label-free CBM, one at a time and in order."""

from __future__ import annotations

import numpy as np
import pytest

from services.concepts.concept_sets import built_in
from services.concepts.filters import FilterSettings, filter_words

OFF = FilterSettings(class_percentile=100, duplicate_percentile=100, weakest_percent=0)


def random_texts(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 32)).astype(np.float32)


def kept_words(words, classes, settings=OFF, **changes):
    texts = changes.pop("texts", random_texts(len(words)))
    class_texts = changes.pop("class_texts", random_texts(len(classes), seed=1))
    found = filter_words(words, classes, texts, class_texts, settings=settings, **changes)
    assert sorted([*(words[i] for i in found.kept), *(d.word for d in found.dropped)]) == sorted(
        words
    )
    return [words[i] for i in found.kept], {d.word: d.reason for d in found.dropped}


def test_long_words_go():
    kept, dropped = kept_words(["short", "x" * 31], ["class"])
    assert kept == ["short"]
    assert dropped == {"x" * 31: "too long"}


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("pear", "Pear"),
        ("pears", "Pear"),
        ("a pear", "Pear"),
        ("The Pear", "pears"),
        ("granny smith", "Granny-Smith"),
        ("satsuma", "Satsumas"),
        ("strawberries", "strawberry"),
        ("strawberry", "Strawberries"),
        ("glass", "Glasses"),
        ("boxes", "box"),
    ],
)
def test_class_names_go_in_every_form(word, name):
    kept, dropped = kept_words([word, "something else"], [name])
    assert kept == ["something else"]
    assert dropped[word] == f"is the class name {name}"


@pytest.mark.parametrize(
    ("word", "name"), [("red pear", "Pear"), ("pearl", "Pear"), ("glass", "grass")]
)
def test_other_words_stay(word, name):
    assert word in kept_words([word, "other"], [name])[0]


def test_words_close_to_a_class_go():
    texts = random_texts(40)
    words = [f"word {i}" for i in range(40)]
    classes = texts[7:8] + 0.05
    settings = FilterSettings(class_percentile=99.5, duplicate_percentile=100, weakest_percent=0)
    kept, dropped = kept_words(words, ["thing"], settings, texts=texts, class_texts=classes)
    assert "word 7" not in kept
    assert dropped["word 7"] == "close to the class name thing"
    assert len(kept) > 30


def test_of_near_duplicates_one_stays():
    texts = random_texts(40)
    texts[5] = texts[4] + 0.01
    words = [f"word {i}" for i in range(40)]
    settings = FilterSettings(class_percentile=100, duplicate_percentile=99.9, weakest_percent=0)
    kept, dropped = kept_words(words, ["thing"], settings, texts=texts)
    assert ("word 4" in kept) != ("word 5" in kept)
    assert len(dropped) == 1


def test_words_that_hardly_fire_go():
    presence = np.random.default_rng(0).uniform(0.3, 0.5, (50, 20)).astype(np.float32)
    presence[:, 3] = 0.01
    words = [f"word {i}" for i in range(20)]
    settings = FilterSettings(class_percentile=100, duplicate_percentile=100, weakest_percent=5)
    kept, dropped = kept_words(words, ["thing"], settings, presence=presence)
    assert list(dropped) == ["word 3"]
    assert len(kept) == 19


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="text embedding"):
        filter_words(["a", "b"], ["c"], random_texts(1), random_texts(1))
    with pytest.raises(ValueError, match="columns"):
        filter_words(["a"], ["c"], random_texts(1), random_texts(1), np.ones((2, 3), np.float32))


def test_the_everyday_corpus_is_large_and_knows_attributes():
    words = built_in()["everyday"].words
    assert len(words) >= 500
    assert {"red skin", "netted rind", "striped", "stem", "leaf", "seed", "round"} <= set(words)
