"""General text for the language demo: State of the Union addresses, and openings of sentences.

`texts` are passages of the addresses; an address lies in one split as a whole. `openings` are the
first words of their sentences: prompts outside any special domain.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from services.common.texts import TextRecord
from services.gateway.datasets.text_fields import Row

PARTS = ("texts", "openings")
FIRST_YEAR = 1930
"""Older addresses are written in another English than today's models speak."""
_PASSAGE_CHARS = 2_000
_TURN = 12
"""Of every so many addresses one is for val and one for test."""
_OPENING_WORDS = 6
_SENTENCE_CHARS = range(60, 161)
_OPENINGS_EVERY = 40


def rows(folder: Path, part: str) -> Iterator[Row]:
    """Yield the records of one of PARTS from the package's folder of addresses."""
    for at, path in enumerate(_addresses(folder / "data")):
        split = {0: "test", 1: "val"}.get(at % _TURN, "train")
        text = str(json.loads(path.read_text(encoding="utf-8"))["text"])
        made = _passages(text) if part == "texts" else _openings(text)
        for number, one in enumerate(made):
            name = f"{path.stem}/{number:04d}"
            record = TextRecord(name, text=one) if part == "texts" else TextRecord(name, prompt=one)
            yield Row(record, split if part == "texts" else "train", True)


def _addresses(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*.json") if int(p.name[:4]) >= FIRST_YEAR)


def _sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.!?])\s+", " ".join(text.split()))


def _passages(text: str) -> Iterator[str]:
    """Yield whole sentences joined up to about `_PASSAGE_CHARS`."""
    passage = ""
    for sentence in _sentences(text):
        if passage and len(passage) + len(sentence) >= _PASSAGE_CHARS:
            yield passage
            passage = ""
        passage = f"{passage} {sentence}".strip()
    if passage:
        yield passage


def _openings(text: str) -> Iterator[str]:
    usable = [one for one in _sentences(text) if len(one) in _SENTENCE_CHARS]
    for sentence in usable[::_OPENINGS_EVERY]:
        yield " ".join(sentence.split()[:_OPENING_WORDS])
