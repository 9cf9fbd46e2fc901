"""Thin a corpus to the words that can serve as concepts for one set of classes and one encoder.

The filters of Label-free CBM (ICLR 2023, arXiv 2304.06129) in its order: length, class names,
similarity to a class name, near duplicates, weak activation. Its similarity thresholds are
constants for CLIP (0.85, 0.90, 0.25); cosines of another encoder are distributed otherwise, so here
they are percentiles of that encoder's own cosines.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

_ARTICLES = {"a", "an", "the"}
_KEEP_LAST = 1


@dataclass(frozen=True)
class FilterSettings:
    """Thresholds; a percentile of 100 switches its filter off, and so does 0 for the weakest share.

    Attributes:
        max_characters: longest word kept.
        class_percentile: words more similar to a class name than this percentile of all word to
            word cosines are dropped.
        duplicate_percentile: of two words more similar than this percentile, one is dropped.
        weakest_percent: share of the words, those with the weakest activation, that is dropped.
        top_images: activation of a word is its mean presence over this many images where it is
            strongest.
    """

    max_characters: int = 30
    class_percentile: float = 99.95
    duplicate_percentile: float = 99.99
    weakest_percent: float = 50.0
    top_images: int = 5


@dataclass(frozen=True)
class Dropped:
    """A word that was filtered out, and why; the reason names what it clashed with."""

    word: str
    reason: str


@dataclass(frozen=True)
class Filtered:
    """Indices of the words kept, in their old order, and the others with a reason each."""

    kept: tuple[int, ...]
    dropped: tuple[Dropped, ...]


def filter_words(
    words: Sequence[str],
    classes: Sequence[str],
    word_texts: Floats,
    class_texts: Floats,
    presence: Floats | None = None,
    settings: FilterSettings | None = None,
) -> Filtered:
    """Apply the filters in order; each sees what the ones before it left.

    Args:
        words: m words.
        classes: class names of the task.
        word_texts: ``[m, D]`` text embeddings of the words.
        class_texts: ``[classes, D]`` text embeddings of the class names.
        presence: ``[n, m]`` presence of the words in training images; None skips the activation
            filter.
        settings: thresholds.

    Raises:
        ValueError: shapes that do not fit.
    """
    settings = settings or FilterSettings()
    if len(word_texts) != len(words) or len(class_texts) != len(classes):
        raise ValueError("one text embedding for each word and class is needed")
    if presence is not None and presence.shape[1:] != (len(words),):
        raise ValueError(f"presence {presence.shape} does not have {len(words)} columns")
    state = _State(words)
    state.drop_if(lambda i: len(words[i]) > settings.max_characters, "too long")
    _drop_class_names(state, words, classes)
    cosines = _cosines(word_texts, word_texts)
    if len(words) > _KEEP_LAST:
        off_diagonal = cosines[~np.eye(len(words), dtype=bool)]
        _drop_similar(state, classes, word_texts, class_texts, off_diagonal, settings)
        _drop_duplicates(state, words, cosines, off_diagonal, settings)
    if presence is not None and len(presence):
        _drop_weak(state, presence, settings)
    return state.result()


def name_forms(name: str) -> frozenset[str]:
    """Spellings that mean the same name: without case, punctuation and article, singular and
    plural.
    """
    plain = [part for part in re.split(r"[^a-z0-9]+", name.lower()) if part]
    while plain and plain[0] in _ARTICLES:
        plain = plain[1:]
    if not plain:
        return frozenset()
    return frozenset(" ".join([*plain[:-1], last]) for last in _number_forms(plain[-1]))


def _number_forms(noun: str) -> set[str]:
    forms = {noun, noun + "s", noun + "es"}
    if noun.endswith("y"):
        forms.add(noun[:-1] + "ies")
    if noun.endswith("ies"):
        forms.add(noun[:-3] + "y")
    if noun.endswith("es") and len(noun) > 3:
        forms.add(noun[:-2])
    if noun.endswith("s") and not noun.endswith("ss") and len(noun) > 2:
        forms.add(noun[:-1])
    return forms


class _State:
    def __init__(self, words: Sequence[str]) -> None:
        self.words = words
        self.alive = list(range(len(words)))
        self.dropped: list[Dropped] = []

    def drop(self, index: int, reason: str) -> None:
        self.alive.remove(index)
        self.dropped.append(Dropped(self.words[index], reason))

    def drop_if(self, test: Callable[[int], bool], reason: str) -> None:
        for index in [i for i in self.alive if test(i)]:
            self.drop(index, reason)

    def result(self) -> Filtered:
        return Filtered(tuple(self.alive), tuple(self.dropped))


def _drop_class_names(state: _State, words: Sequence[str], classes: Sequence[str]) -> None:
    by_form = {form: name for name in classes for form in name_forms(name)}
    for index in list(state.alive):
        clash = next(
            (by_form[form] for form in sorted(name_forms(words[index])) if form in by_form), None
        )
        if clash is not None:
            state.drop(index, f"is the class name {clash}")


def _drop_similar(
    state: _State,
    classes: Sequence[str],
    word_texts: Floats,
    class_texts: Floats,
    off_diagonal: Floats,
    settings: FilterSettings,
) -> None:
    if not classes or settings.class_percentile >= 100:
        return
    threshold = np.percentile(off_diagonal, settings.class_percentile)
    cosines = _cosines(word_texts, class_texts)
    for index in list(state.alive):
        nearest = int(cosines[index].argmax())
        if cosines[index, nearest] > threshold:
            state.drop(index, f"close to the class name {classes[nearest]}")


def _drop_duplicates(
    state: _State,
    words: Sequence[str],
    cosines: Floats,
    off_diagonal: Floats,
    settings: FilterSettings,
) -> None:
    """Of each pair above the threshold, drop the word with the lower total similarity (Label-free
    CBM).
    """
    if settings.duplicate_percentile >= 100:
        return
    threshold = np.percentile(off_diagonal, settings.duplicate_percentile)
    totals = cosines[:, state.alive].sum(axis=1)
    rows, columns = np.nonzero(np.triu(cosines > threshold, k=1))
    for first, second in zip(rows.tolist(), columns.tolist(), strict=True):
        if first in state.alive and second in state.alive:
            loser, winner = (first, second) if totals[first] < totals[second] else (second, first)
            state.drop(loser, f"means the same as {words[winner]}")


def _drop_weak(state: _State, presence: Floats, settings: FilterSettings) -> None:
    top = min(settings.top_images, len(presence))
    strongest = np.partition(presence, len(presence) - top, axis=0)[-top:]
    activation = strongest.mean(axis=0)
    if settings.weakest_percent <= 0 or len(state.alive) <= _KEEP_LAST:
        return
    threshold = np.percentile(activation[state.alive], settings.weakest_percent)
    state.drop_if(lambda i: bool(activation[i] < threshold), "hardly active on these images")


def _cosines(first: Floats, second: Floats) -> Floats:
    """Cosines around the mean of `second`'s and `first`'s space: raw text cosines share a large
    offset.
    """
    mean = first.mean(axis=0)
    return np.asarray(_unit(first - mean) @ _unit(second - mean).T, dtype=np.float32)


def _unit(rows: Floats) -> Floats:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))
