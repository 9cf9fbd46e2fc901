"""Figures of a tuneshift job's rounds: what was kept and why not, gaps, diversity, coverage."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, TypedDict

import numpy as np

from services.gateway.jobs.tuneshift_filter import Filter, Kept, judge, rouge_l, words_of
from services.gateway.jobs.tuneshift_specs import TAUS

_BINS = 24
_PAIRS = 500
_INVALID = ("empty", "cut off", "verifier", "failed")


class Sample(TypedDict):
    """One example. Perplexities are None where the answer was not scored."""

    sample_id: str
    prompt: str
    answer: str
    word: str
    round: int
    off_domain: bool
    tuned_perplexity: float | None
    base_perplexity: float | None
    nll_gap: float | None
    reason: str
    """Why it was dropped; empty where it was kept."""
    token_count: int


def is_kept(sample: Sample) -> bool:
    """Whether the filter kept an example."""
    return not sample["reason"]


def is_valid(sample: Sample) -> bool:
    """Whether an example could be trained on at all, whatever the filter said."""
    return sample["reason"] not in _INVALID


def round_figures(number: int, samples: Sequence[Sample]) -> dict[str, Any]:
    """Return the counts of a round, its keep rate, and how diverse what it kept is."""
    kept = [one for one in samples if is_kept(one)]
    off = [one for one in samples if one["off_domain"]]
    off_kept = sum(is_kept(one) for one in off)
    return {
        "round": number,
        "prompts": len(samples),
        "kept": len(kept),
        "keep_rate": len(kept) / max(len(samples), 1),
        "in_domain": len(samples) - len(off),
        "in_domain_kept": len(kept) - off_kept,
        "off_domain": len(off),
        "off_domain_kept": off_kept,
        "tokens": sum(one["token_count"] for one in samples),
        "reasons": dict(Counter(one["reason"] for one in samples if one["reason"])),
        "gap_histogram": gap_histogram(samples, None),
        "diversity": diversity([one["answer"] for one in kept], seed=number),
    }


def gap_histogram(samples: Iterable[Sample], threshold: float | None) -> dict[str, Any]:
    """Return a histogram of nll_gap (nats per token), in domain and off-domain apart."""
    scored = [one for one in samples if one["nll_gap"] is not None and is_valid(one)]
    gaps = [one["nll_gap"] or 0.0 for one in scored]
    if not gaps:
        return {"edges": [], "in_domain": [], "off_domain": [], "threshold": threshold}
    edges = np.histogram_bin_edges(gaps, bins=_BINS)
    parts: dict[str, Any] = {"edges": [float(edge) for edge in edges], "threshold": threshold}
    for name, wanted in (("in_domain", False), ("off_domain", True)):
        mine = [one["nll_gap"] or 0.0 for one in scored if one["off_domain"] == wanted]
        parts[name] = [int(count) for count in np.histogram(mine, bins=edges)[0]]
    return parts


def diversity(texts: Sequence[str], *, seed: int) -> dict[str, float | None]:
    """Return distinct-1 and distinct-2 (Li et al. 2016, arXiv 1510.03055: different n-grams over
    all of them) and the mean ROUGE-L of random pairs, at most 500."""
    words = [words_of(text) for text in texts]
    return {
        "distinct_1": _distinct(words, 1),
        "distinct_2": _distinct(words, 2),
        "mean_rouge_l": _mean_rouge(words, seed),
    }


def tau_counts(rounds: Sequence[Sequence[Sample]], settings: Filter) -> dict[str, int]:
    """Return how many examples each tau would keep, everything else alike."""
    return {f"{tau:g}": len(refiltered(rounds, settings, tau)) for tau in TAUS}


def refiltered(rounds: Sequence[Sequence[Sample]], settings: Filter, tau: float) -> list[Sample]:
    """Return the examples that another tau keeps of the same pool."""
    other = Filter(
        tau=tau,
        by_difference=settings.by_difference,
        confident_share=settings.confident_share,
        max_perplexity=settings.max_perplexity,
        similarity=settings.similarity,
    )
    seen = Kept(settings.similarity)
    found = []
    for samples in rounds:
        ranked = [one if is_valid(one) else None for one in samples]
        reasons = judge(
            [(one and one["tuned_perplexity"]) or math.nan for one in ranked],
            [(one and one["base_perplexity"]) or math.nan for one in ranked],
            other,
        )
        for one, reason in zip(samples, reasons, strict=True):
            parts = (one["prompt"], one["answer"], one["word"])
            if not reason and not seen.is_duplicate(*parts):
                seen.add(*parts)
                found.append(one)
    return found


def coverage(groups: Iterable[str], prompts: Iterable[str]) -> dict[str, Any]:
    """Return the share of evaluation groups whose words occur, in order, in a kept prompt."""
    wanted = [words for words in (tuple(words_of(one)) for one in set(groups)) if words]
    sizes = sorted({len(words) for words in wanted})
    looked_for, met = set(wanted), set[tuple[str, ...]]()
    for prompt in prompts:
        words = words_of(prompt)
        for size in sizes:
            met |= looked_for.intersection(_grams(words, size))
    covered = sum(words in met for words in wanted)
    return {"groups": len(wanted), "covered": covered, "share": covered / max(len(wanted), 1)}


def _distinct(texts: Sequence[Sequence[str]], size: int) -> float | None:
    grams = [gram for words in texts for gram in _grams(words, size)]
    return len(set(grams)) / len(grams) if grams else None


def _grams(words: Sequence[str], size: int) -> list[tuple[str, ...]]:
    """Return the runs of `size` words, in order."""
    return [tuple(words[at : at + size]) for at in range(len(words) - size + 1)]


def _mean_rouge(texts: Sequence[Sequence[str]], seed: int) -> float | None:
    if len(texts) < 2:
        return None
    draw = random.Random(f"pairs {seed}")
    pairs = [draw.sample(range(len(texts)), 2) for _ in range(_PAIRS)]
    return sum(rouge_l(texts[a], texts[b]) for a, b in pairs) / len(pairs)
