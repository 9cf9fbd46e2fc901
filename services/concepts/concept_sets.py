"""Concept sets are data: built-in corpora (TOML files beside this module) and lists of a project.

A set's version is the digest of its words in order. A project's set is a blob with its words, so an
old version stays readable, and a ref that points at the newest.
"""

from __future__ import annotations

import functools
import hashlib
import json
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from services.common.blobs import BlobStore
from services.common.errors import InvalidInput, NotFound
from services.common.names import check_id

MAX_WORDS = 4096
MAX_WORD_CHARACTERS = 100
_FOLDER = "concept-sets"
_CORPORA = Path(__file__).with_name("corpora")


@dataclass(frozen=True)
class WordSet:
    """A concept set: its id, its words in order, and whether it comes with the service."""

    id: str
    words: tuple[str, ...]
    built_in: bool

    @property
    def digest(self) -> str:
        """SHA-256 hex of the words in order: the version."""
        return hashlib.sha256(_encode(self.words)).hexdigest()


def check_words(words: Sequence[str], *, field: str = "words") -> tuple[str, ...]:
    """Return the words without surrounding blanks.

    Raises InvalidInput where there are none or over 4,096, one is empty, over 100 characters or not
    printable, or one comes twice (letter case aside).
    """
    if not 1 <= len(words) <= MAX_WORDS:
        raise InvalidInput(f"{field}: {len(words)} words; use 1 to {MAX_WORDS:,}", field=field)
    cleaned = tuple(word.strip() for word in words)
    seen: dict[str, int] = {}
    for at, word in enumerate(cleaned):
        where = f"{field}[{at}]"
        if not 1 <= len(word) <= MAX_WORD_CHARACTERS or not word.isprintable():
            raise InvalidInput(
                f"{where}: a word has 1 to {MAX_WORD_CHARACTERS} printable characters", field=where
            )
        first = seen.setdefault(word.casefold(), at)
        if first != at:
            raise InvalidInput(f"{where}: {word!r} is {field}[{first}] again", field=where)
    return cleaned


@functools.cache
def built_in() -> dict[str, WordSet]:
    """The corpora that come with the service, by id."""
    sets = {}
    for path in sorted(_CORPORA.glob("*.toml")):
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
        words = [
            word for table in tables.values() if isinstance(table, dict) for word in table["words"]
        ]
        sets[path.stem] = WordSet(path.stem, check_words(words), built_in=True)
    return sets


class ConceptSets:
    """The concept sets of all projects. Blocking: call it off the event loop."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs

    def names(self, project: str) -> Iterator[str]:
        """Yield the ids of the sets a project can use, built-in ones first."""
        yield from built_in()
        yield from self._blobs.list_refs(project, _FOLDER)

    def get(self, project: str, set_id: str) -> WordSet:
        """Return a set's newest version. Raises NotFound, InvalidInput."""
        if set_id in built_in():
            check_id(project, field="project")
            return built_in()[set_id]
        try:
            record = json.loads(self._blobs.get_ref(project, f"{_FOLDER}/{set_id}"))
        except NotFound:
            raise NotFound(
                f"no concept set {set_id} in project {project}", resource=set_id
            ) from None
        words = json.loads(self._blobs.get(project, str(record["words"])))
        return WordSet(set_id, check_words(words), built_in=False)

    def create(self, project: str, set_id: str, words: Sequence[str]) -> WordSet:
        """Store words as the newest version of a set; the same words again change nothing.

        Raises InvalidInput for words that are not valid or the name of a built-in set.
        """
        check_id(set_id, field="concept_set.name")
        if set_id in built_in():
            raise InvalidInput(
                f"{set_id} is a built-in set; choose another name", field="concept_set.name"
            )
        made = WordSet(set_id, check_words(words, field="concept_set.words"), built_in=False)
        digest = self._blobs.put(project, _encode(made.words))
        record = json.dumps({"words": digest}).encode()
        self._blobs.put_ref(project, f"{_FOLDER}/{set_id}", record)
        return made


def _encode(words: Sequence[str]) -> bytes:
    return json.dumps(list(words), ensure_ascii=False).encode()
