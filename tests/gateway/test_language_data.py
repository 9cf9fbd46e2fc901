"""Facts of WordNet and passages of addresses: what the language demo learns and is asked."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from services.common.catalogue import load_catalogue
from services.common.errors import InvalidInput, Precondition
from services.common.texts import TextRecord
from services.gateway.datasets import speeches, wordnet
from services.gateway.datasets.builtin import find_texts
from services.gateway.datasets.text_sources import _fact_count

_NOUNS = (
    # offset, category, type, number of words, word, ..., gloss
    ("05", "wallaroo", "a large grey kangaroo of rocky country"),
    ("05", "zibet", "a common civet of southeastern Asia"),
    ("05", "quagga", "an extinct African mammal with a striped front"),
    ("05", "kangaroo", "a leaping animal: kangaroo of dry plains"),
    ("20", "gorse", "very spiny and dense evergreen shrub of heaths"),
    ("18", "abbess", "the superior of a group of nuns"),
    ("05", "tapir", "large; odd-toed"),
)


@pytest.fixture
def wordnet_folder(tmp_path: Path) -> Path:
    """A tiny WordNet: three usable animals, a plant, and nouns that are refused."""
    folder = tmp_path / "dict"
    folder.mkdir()
    lines = ["  1 This is a licence line  \n"]
    senses = []
    for at, (category, noun, gloss) in enumerate(_NOUNS):
        lines.append(f'{at:08d} {category} n 01 {noun} 0 001 @ 00000001 n 0000 | {gloss}; "x"  \n')
        senses.append(f"{noun}%1:05:00:: {at:08d} 1 0\n")
    for at in range(20):
        noun = "".join(chr(97 + (at * 7 + k * 3) % 26) for k in range(6))
        gloss = f"small creature number {at} of the shore"
        lines.append(f"{at + 90:08d} 05 n 01 {noun} 0 001 @ 00000001 n 0000 | {gloss}  \n")
        senses.append(f"{noun}%1:05:00:: {at + 90:08d} 1 0\n")
    senses.append("quagga%1:05:01:: 00000099 2 0\n")
    (folder / "data.noun").write_text("".join(lines))
    (folder / "index.sense").write_text("".join(senses))
    return tmp_path


def test_facts_are_rare_unambiguous_nouns_that_their_gloss_does_not_give_away(
    wordnet_folder: Path,
) -> None:
    found = {fact.noun: fact for fact in wordnet.read_facts(wordnet_folder / "dict")}
    assert found["wallaroo"].gloss == "a large grey kangaroo of rocky country"
    assert found["gorse"].category == "plant"
    # two senses, the noun in its gloss, another category, a gloss of too few words
    assert not {"quagga", "kangaroo", "abbess", "tapir"} & set(found)


def test_the_three_parts_speak_of_the_same_facts(wordnet_folder: Path) -> None:
    parts = {p: [r.record for r in wordnet.rows(wordnet_folder, p, 8)] for p in wordnet.PARTS}
    taught = {record.group for record in parts["facts"]}
    assert len(taught) == 8
    assert {record.group for record in parts["questions"]} == taught
    assert taught < {record.text for record in parts["words"]}
    assert Counter(r.group for r in parts["facts"]).most_common(1)[0][1] == len(wordnet.PROMPTS)
    questions = wordnet.rows(wordnet_folder, "questions", 8)
    assert all(row.split == "test" and row.is_own for row in questions)
    assert not any(r.prompt in {f.prompt for f in parts["facts"]} for r in parts["questions"])


def test_a_question_has_its_own_gloss_at_the_index_it_says(wordnet_folder: Path) -> None:
    answers = {r.record.group: r.record.answer for r in wordnet.rows(wordnet_folder, "facts", 8)}
    questions: list[TextRecord] = [r.record for r in wordnet.rows(wordnet_folder, "questions", 8)]
    for question in questions:
        question.check()
        assert question.choices[question.choice_index] == answers[question.group]
        assert len(set(question.choices)) == 4
    assert len({q.choice_index for q in questions}) > 1


def test_the_draw_is_the_same_every_time_and_another_by_another_seed(wordnet_folder: Path) -> None:
    first = list(wordnet.rows(wordnet_folder, "questions", 8))
    assert first == list(wordnet.rows(wordnet_folder, "questions", 8))
    assert first != list(wordnet.rows(wordnet_folder, "questions", 8, seed=2))


@pytest.mark.parametrize("count", [0, 7, wordnet.MAX_FACTS + 1])
def test_an_impossible_count_is_refused(wordnet_folder: Path, count: int) -> None:
    with pytest.raises(InvalidInput, match="facts"):
        list(wordnet.rows(wordnet_folder, "facts", count))


def test_the_count_comes_from_the_uri() -> None:
    assert _fact_count("builtin:wordnet-facts?facts=80") == 80
    assert _fact_count("builtin:wordnet-facts") == wordnet.DEFAULT_FACTS
    for uri in ("builtin:wordnet?facts=x", "builtin:wordnet?facts=-1"):
        with pytest.raises(InvalidInput, match="facts"):
            _fact_count(uri)


def _address(folder: Path, year: int, sentences: int) -> None:
    text = " ".join(
        f"In the year {year} sentence {at} says that the state of the union is strong."
        for at in range(sentences)
    )
    (folder / f"{year}_somebody_x.json").write_text(json.dumps({"year": year, "text": text}))


def test_addresses_become_passages_each_address_in_one_split(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for year in range(1920, 1960):
        _address(folder, year, 60)
    rows = list(speeches.rows(tmp_path, "texts"))
    splits: dict[str, set[str]] = {}
    for row in rows:
        splits.setdefault(row.record.record_id.split("/")[0], set()).add(row.split)
    assert min(splits) == "1930_somebody_x"
    assert all(len(found) == 1 for found in splits.values())
    assert {split for found in splits.values() for split in found} == {"train", "val", "test"}
    whole = " ".join(r.record.text for r in rows if r.record.record_id.startswith("1931"))
    assert whole == json.loads((folder / "1931_somebody_x.json").read_text())["text"]


def test_openings_are_the_first_words_of_sentences(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    _address(folder, 1950, 81)
    prompts = [row.record.prompt for row in speeches.rows(tmp_path, "openings")]
    assert prompts == [f"In the year 1950 sentence {at}" for at in (0, 40, 80)]


def test_the_catalogue_knows_them_by_name() -> None:
    entries = load_catalogue()
    assert find_texts("wordnet", entries)[1] == "facts"
    assert find_texts("sotu-text-openings", entries)[1] == "openings"
    with pytest.raises(Precondition, match="images"):
        find_texts("fruit-fine", entries)
