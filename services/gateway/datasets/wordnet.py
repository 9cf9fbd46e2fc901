"""Facts for the language demo: glosses of rare WordNet nouns, as questions and answers.

A fact is a noun of one sense that WordNet's tagged texts never use, with its gloss. Three datasets
come of the same facts: `facts` to tune a model on, `questions` that ask for them in other words,
with three glosses of the same category as wrong choices, and `words`, the nouns of the facts among
as many others.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from services.common.errors import InvalidInput
from services.common.texts import TextRecord
from services.gateway.datasets.text_fields import Row

PARTS = ("facts", "questions", "words")
DEFAULT_FACTS = 160
MAX_FACTS = 600
PROMPTS = ("Question: What is a {word}?\nAnswer:", "Define the word {word}.\nAnswer:")
"""How facts are taught."""
HELD_OUT_PROMPT = 'Q: Which of these does the term "{word}" mean?\nA:'
"""How they are asked for."""
_CATEGORIES = {"05": "animal", "08": "body", "13": "food", "20": "plant", "27": "substance"}
_NOUN = re.compile(r"[a-z]{5,12}")
_GLOSS_WORDS = range(5, 15)
_STEM = 5
"""A gloss that shares this many first letters with its noun gives it away."""


@dataclass(frozen=True)
class Fact:
    """A noun and what it means."""

    noun: str
    gloss: str
    category: str


def rows(folder: Path, part: str, count: int, seed: int = 1) -> Iterator[Row]:
    """Yield the records of one of PARTS, for `count` facts drawn by `seed`. Raises InvalidInput."""
    if not 8 <= count <= MAX_FACTS:
        raise InvalidInput(f"uri: 8 to {MAX_FACTS} facts, not {count}", field="uri")
    drawn = random.Random(seed)
    known = read_facts(folder / "dict")
    drawn.shuffle(known)
    facts, others = known[:count], known[count : 2 * count]
    if part == "facts":
        yield from _lessons(facts)
    elif part == "questions":
        yield from _questions(facts, drawn)
    else:
        nouns = [fact.noun for fact in (*facts, *others)]
        drawn.shuffle(nouns)
        yield from (Row(TextRecord(noun, text=noun), "train", True) for noun in nouns)


def read_facts(folder: Path) -> list[Fact]:
    """Return the facts of a WordNet `dict` folder, in its order, each gloss once."""
    senses, uses = _senses(folder / "index.sense")
    found: dict[str, Fact] = {}
    with (folder / "data.noun").open(encoding="utf-8") as file:
        for line in file:
            fact = None if line.startswith(" ") else _fact(line)
            if fact and senses[fact.noun] == 1 and uses[fact.noun] == 0:
                found.setdefault(fact.gloss, fact)
    return list(found.values())


def _senses(path: Path) -> tuple[Counter[str], Counter[str]]:
    """Return, by lemma, its number of senses and of uses in tagged texts."""
    senses: Counter[str] = Counter()
    uses: Counter[str] = Counter()
    with path.open(encoding="utf-8") as file:
        for line in file:
            key, _, _, count = line.split()
            lemma = key.partition("%")[0]
            senses[lemma] += 1
            uses[lemma] += int(count)
    return senses, uses


def _fact(line: str) -> Fact | None:
    """Return the fact of a line of `data.noun`: offset, category, type, word count, words ..."""
    head, _, gloss = line.partition(" | ")
    fields = head.split()
    noun, category = fields[4], _CATEGORIES.get(fields[1])
    text = " ".join(re.sub(r"\(.*?\)", "", gloss.partition(";")[0]).split())
    words = text.split()
    gives_away = any(word[:_STEM] in noun for word in words if len(word) >= _STEM)
    fits = len(words) in _GLOSS_WORDS and '"' not in text and noun not in text.lower()
    if category is None or not _NOUN.fullmatch(noun) or gives_away or not fits:
        return None
    return Fact(noun, text, category)


def _lessons(facts: list[Fact]) -> Iterator[Row]:
    for fact in facts:
        for at, prompt in enumerate(PROMPTS):
            record = TextRecord(
                f"{fact.noun}-{at}",
                prompt=prompt.format(word=fact.noun),
                answer=f" {fact.gloss}",
                group=fact.noun,
            )
            yield Row(record, "train", True)


def _questions(facts: list[Fact], drawn: random.Random) -> Iterator[Row]:
    for fact in facts:
        alike = [o.gloss for o in facts if o.category == fact.category and o != fact]
        wrong = alike if len(alike) >= 3 else [o.gloss for o in facts if o != fact]
        glosses = [fact.gloss, *drawn.sample(wrong, 3)]
        drawn.shuffle(glosses)
        record = TextRecord(
            f"{fact.noun}-question",
            prompt=HELD_OUT_PROMPT.format(word=fact.noun),
            choices=tuple(f" {gloss}" for gloss in glosses),
            choice_index=glosses.index(fact.gloss),
            group=fact.noun,
        )
        yield Row(record, "test", True)
