"""Which examples carry what a tuned model knows and its base does not (arXiv 2603.24518).

An answer is kept where the base finds it much less likely than the tuned model does, the tuned
model is confident of it, and nothing much like it was kept before. Perplexities are those of the
answer's tokens alone: PPL(y|x) = exp(-(1/|y|) sum_t log p(y_t | x, y_<t)).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rapidfuzz import process
from rapidfuzz.distance import LCSseq

DEFAULT_TAU = 1.5
DEFAULT_SHARE = 0.9
DEFAULT_SIMILARITY = 0.7
FEWEST_ANSWER_WORDS = 8
"""Shorter answers are alike by chance, so they alone make no duplicate."""
_MOST_EXPONENT = 80.0
_SURROGATES = 0xD800
_CHARACTERS = 0x110000 - 0x800 - 1
_WORD = re.compile(r"\w+", re.UNICODE)

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Filter:
    """The filter's settings; see TuneShiftFilter of the contract."""

    tau: float = DEFAULT_TAU
    by_difference: bool = False
    confident_share: float = DEFAULT_SHARE
    max_perplexity: float = math.inf
    similarity: float = DEFAULT_SIMILARITY

    @property
    def gap_threshold(self) -> float | None:
        """Return log(tau), the least mean log-probability gained; None by difference."""
        return None if self.by_difference or self.tau <= 0 else math.log(self.tau)


def perplexity(log_probability: float, tokens: int) -> float:
    """Return exp of the mean negative log-probability; NaN without tokens."""
    if tokens < 1 or not math.isfinite(log_probability):
        return math.nan
    return math.exp(min(-log_probability / tokens, _MOST_EXPONENT))


def nll_gap(tuned: float, base: float) -> float:
    """Return log(base / tuned) of two perplexities: nats gained per token; NaN where unknown."""
    return math.log(base) - math.log(tuned) if tuned > 0 and base > 0 else math.nan


def judge(tuned: Sequence[float], base: Sequence[float], settings: Filter) -> list[str]:
    """Return why each example of a round is dropped, empty where it is kept.

    `tuned` and `base` are perplexities; NaN stands for an example that was not scored, which takes
    no part in the ranking and is dropped as `empty`.
    """
    tuned_ppl, base_ppl = np.asarray(tuned, float), np.asarray(base, float)
    scored = np.isfinite(tuned_ppl) & np.isfinite(base_ppl)
    with np.errstate(invalid="ignore"):
        gap = base_ppl - tuned_ppl if settings.by_difference else base_ppl / tuned_ppl
        wide = gap >= settings.tau
    confident = most_confident(tuned_ppl, scored, settings.confident_share)
    confident &= np.where(scored, tuned_ppl, np.inf) <= settings.max_perplexity
    reasons = np.select([~scored, ~wide, ~confident], ["empty", "gap", "not confident"], "")
    return [str(reason) for reason in reasons]


def most_confident(tuned: Floats, scored: NDArray[np.bool_], share: float) -> NDArray[np.bool_]:
    """Return which examples are in the `share` of scored ones with the lowest perplexity; among
    equal ones the earlier come first."""
    order = np.argsort(np.where(scored, tuned, np.inf), kind="stable")
    count = math.ceil(share * int(scored.sum()) - 1e-9)
    found = np.zeros(len(tuned), bool)
    found[order[:count]] = True
    return found & scored


def words_of(text: str) -> list[str]:
    """Return the lower-case words of a text."""
    return _WORD.findall(text.lower())


def rouge_l(first: Sequence[str], second: Sequence[str]) -> float:
    """Return ROUGE-L (F1 of the longest common subsequence of words), 0 to 1.

    Lin 2004, "ROUGE: A package for automatic evaluation of summaries", section 3, beta = 1.
    """
    if not first or not second:
        return 0.0
    return 2.0 * LCSseq.similarity(first, second) / (len(first) + len(second))


class Kept:
    """The examples kept so far, against which new ones are compared.

    Words become single characters, so that one call compares a text with all others.
    """

    def __init__(self, similarity: float = DEFAULT_SIMILARITY) -> None:
        self._similarity = similarity
        self._characters: dict[str, str] = {}
        self._prompts: dict[str, list[str]] = {}
        self._answers: dict[str, list[str]] = {}

    def is_duplicate(self, prompt: str, answer: str, word: str = "") -> bool:
        """Whether prompt or answer is more alike to a kept one than allowed.

        Prompts that one template made with different words are about different things: `word` is
        the one filled in, and only examples with an equal one are compared.
        """
        if self._is_alike(self._coded(prompt), self._prompts.get(word, [])):
            return True
        coded = self._coded(answer)
        long = len(coded) >= FEWEST_ANSWER_WORDS
        return long and self._is_alike(coded, self._answers.get(word, []))

    def add(self, prompt: str, answer: str, word: str = "") -> None:
        """Remember a kept example."""
        self._prompts.setdefault(word, []).append(self._coded(prompt))
        self._answers.setdefault(word, []).append(self._coded(answer))

    def _is_alike(self, text: str, others: Sequence[str]) -> bool:
        """As `rouge_l(...) > similarity` for any of the others."""
        if not text or not others:
            return False
        common = process.cdist([text], others, scorer=LCSseq.similarity, dtype=np.int32)[0]
        totals = len(text) + np.fromiter(map(len, others), np.int64, len(others))
        return bool((2.0 * common > self._similarity * totals).any())

    def _coded(self, text: str) -> str:
        """Return a text with a character for each word, the same one for the same word."""
        for word in (words := words_of(text)):
            if word not in self._characters:
                self._characters[word] = _character(len(self._characters))
        return "".join(self._characters[word] for word in words)


def _character(number: int) -> str:
    """Return the number-th character, surrogates left out; beyond the last they begin again."""
    code = 1 + number % _CHARACTERS
    return chr(code if code < _SURROGATES else code + 0x800)
