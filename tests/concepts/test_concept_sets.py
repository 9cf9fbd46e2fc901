"""Words of concept sets: what is accepted, what a version is, how a project keeps its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.common.blobs import BlobStore
from services.common.errors import InvalidInput, NotFound
from services.concepts.concept_sets import ConceptSets, WordSet, built_in, check_words


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["a"] * 2,
        ["red", "Red"],
        ["red", " red "],
        ["  "],
        ["x" * 101],
        ["tab\tbed"],
        ["zero\0"],
        [f"w{n}" for n in range(4097)],
    ],
)
def test_bad_words_are_refused(words: list[str]) -> None:
    with pytest.raises(InvalidInput):
        check_words(words)


def test_words_keep_their_order_and_lose_surrounding_blanks() -> None:
    assert check_words([" netted rind ", "rot-grün", "赤"]) == ("netted rind", "rot-grün", "赤")


def test_the_version_follows_words_and_their_order() -> None:
    digests = {WordSet("x", words, False).digest for words in (("a", "b"), ("b", "a"), ("a,b",))}
    assert len(digests) == 3
    assert WordSet("x", ("a", "b"), False).digest == WordSet("y", ("a", "b"), True).digest


def test_the_default_corpus_has_everyday_words() -> None:
    words = set(built_in()["everyday"].words)
    assert len(words) >= 500
    assert {"red", "striped", "round", "skin", "grass"} <= words


def test_projects_do_not_see_each_others_sets(tmp_path: Path) -> None:
    sets = ConceptSets(BlobStore(str(tmp_path)))
    sets.create("mine", "rinds", ["netted", "smooth"])
    assert sets.get("mine", "rinds").words == ("netted", "smooth")
    assert list(sets.names("mine"))[-1] == "rinds"
    assert "rinds" not in list(sets.names("yours"))
    with pytest.raises(NotFound):
        sets.get("yours", "rinds")


@pytest.mark.parametrize("name", ["everyday", "../up", "Upper", ""])
def test_a_set_has_a_name_of_its_own(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInput):
        ConceptSets(BlobStore(str(tmp_path))).create("mine", name, ["a"])
