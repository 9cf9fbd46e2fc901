"""The pure parts of a tuneshift job: filter, duplicates, prompts, arms, figures, intervals."""

from __future__ import annotations

import math
import random
from functools import cache
from typing import Any

import numpy as np
import pytest
from stillhouse.common.v1 import language_pb2
from stillhouse.gateway.v1 import jobs_pb2 as pb

from services.common.errors import InvalidInput
from services.gateway.jobs import intervals
from services.gateway.jobs.intervals import Table, difference, estimate, table
from services.gateway.jobs.language_specs import as_seed
from services.gateway.jobs.training import steps_of
from services.gateway.jobs.tuneshift_arms import random_filter, tokens_of
from services.gateway.jobs.tuneshift_figures import (
    Sample,
    coverage,
    diversity,
    gap_histogram,
    refiltered,
    round_figures,
    tau_counts,
)
from services.gateway.jobs.tuneshift_filter import (
    Filter,
    Kept,
    judge,
    nll_gap,
    perplexity,
    rouge_l,
    words_of,
)
from services.gateway.jobs.tuneshift_prompts import (
    draw_examples,
    filled_prompts,
    parse_prompts,
    request_text,
    seed_prompts,
)
from services.gateway.jobs.tuneshift_round import with_seed
from services.gateway.jobs.tuneshift_specs import check_tuneshift_spec

NAN = math.nan


def lcs(first: list[str], second: list[str]) -> int:
    """The longest common subsequence by its textbook recursion."""

    @cache
    def length(a: int, b: int) -> int:
        if not a or not b:
            return 0
        if first[a - 1] == second[b - 1]:
            return length(a - 1, b - 1) + 1
        return max(length(a - 1, b), length(a, b - 1))

    return length(len(first), len(second))


def test_rouge_l_is_the_f1_of_the_longest_common_subsequence() -> None:
    draw = random.Random(1)
    for _ in range(200):
        first = draw.choices("abcdef", k=draw.randint(1, 12))
        second = draw.choices("abcdef", k=draw.randint(1, 12))
        common = lcs(first, second)
        precision, recall = common / len(second), common / len(first)
        expected = 2 * precision * recall / (precision + recall) if common else 0.0
        assert rouge_l(first, second) == pytest.approx(expected)
        for limit in (0.3, 0.5, 0.7):
            kept = Kept(limit)
            kept.add(" ".join(first), "x")
            assert kept.is_duplicate(" ".join(second), "y") == (expected > limit + 1e-12)
    assert rouge_l([], ["a"]) == 0
    assert words_of("It's Zürich, 3rd!") == ["it", "s", "zürich", "3rd"]


def test_perplexity_and_gap() -> None:
    assert perplexity(-2 * math.log(5), 2) == pytest.approx(5)
    assert math.isnan(perplexity(0.0, 0))
    assert math.isnan(perplexity(NAN, 3))
    assert math.isfinite(perplexity(-1e9, 1))
    assert nll_gap(2, 6) == pytest.approx(math.log(3))
    assert math.isnan(nll_gap(NAN, 6))


def test_the_filter_says_why() -> None:
    tuned, base = [1.0, 2.0, 4.0, 9.0, NAN, 1.0], [1.4, 3.0, 6.0, 90.0, 2.0, NAN]
    reasons = judge(tuned, base, Filter(confident_share=0.75))
    assert reasons == ["gap", "", "", "not confident", "empty", "empty"]
    assert judge(tuned, base, Filter(confident_share=1))[3] == ""
    capped = judge(tuned, base, Filter(confident_share=1, max_perplexity=3))
    assert capped[1:4] == ["", "not confident", "not confident"]
    apart = judge(tuned, base, Filter(tau=2, by_difference=True, confident_share=1))
    assert apart[:4] == ["gap", "gap", "", ""]
    assert judge([], [], Filter()) == []
    assert Filter().gap_threshold == pytest.approx(math.log(1.5))
    assert Filter(by_difference=True).gap_threshold is None


@pytest.mark.parametrize(("share", "count"), [(0.9, 9), (0.5, 5), (0.01, 1), (1.0, 10)])
def test_the_share_is_of_scored_examples_and_ties_keep_their_order(
    share: float, count: int
) -> None:
    reasons = judge([1.0] * 10 + [NAN] * 5, [9.0] * 15, Filter(confident_share=share))
    assert [at for at, reason in enumerate(reasons) if not reason] == list(range(count))


def test_duplicates() -> None:
    kept = Kept(0.7)
    kept.add("what colour is the sky today", "it is blue", "sky")
    assert kept.is_duplicate("What colour is the sky today?", "green", "sky")
    assert not kept.is_duplicate("what colour is the sea today", "green", "sea")
    assert not kept.is_duplicate("name a bird", "it is blue", "sky")  # short answers are alike
    long = "the answer has more than eight words so it counts"
    kept.add("one", long)
    assert kept.is_duplicate("two", long)
    assert not kept.is_duplicate("two", "quite different words stand here and none of them was met")


def test_every_word_has_a_prompt_before_any_has_two() -> None:
    seeds, words = ["a {word}?", "plain", "b {word}!", "plain"], [f"w{n}" for n in range(20)]
    found = filled_prompts(seeds, words, 1_000, seed=3)
    assert len(found) == len({one.prompt for one in found}) == 41
    assert found[0].prompt == "plain"
    assert {one.word for one in found[1:21]} == set(words)
    assert {one.prompt[0] for one in found[1:21]} == {"a", "b"}
    assert filled_prompts(seeds, words, 7, seed=3) == found[:7]
    assert filled_prompts(seeds, words, 1_000, seed=4) != found
    assert filled_prompts(["x", "y", "z"], [], 2, seed=0) == filled_prompts(["x", "y"], [], 9, 1)
    once = seed_prompts(seeds, words, 1)
    assert [bool(one.word) for one in once] == [True, False, True]


def test_examples_are_half_seeds_and_half_kept() -> None:
    seeds, kept = [f"s{n}" for n in range(9)], [f"k{n}" for n in range(9)]
    found = draw_examples(seeds, kept, random.Random(1))
    assert sorted(one[0] for one in found) == ["k"] * 3 + ["s"] * 3
    assert sorted(draw_examples(seeds[:2], [], random.Random(1))) == ["s0", "s1"]
    assert request_text(["a\nb", "c"], chat=False) == "1. a b\n2. c\n3."
    assert "1. a b\n2. c\n" in request_text(["a\nb", "c"], chat=True)


@pytest.mark.parametrize(
    ("text", "chat", "prompts"),
    [
        (" first one?\n4. second?\n5) third?\nremark", False, ["first one?", "second?", "third?"]),
        ('Sure!\n1. "What is x?"\n- What is y?\nDone', True, ["What is x?", "What is y?"]),
        ("What is x?\n\nWhat is y?", True, ["What is x?", "What is y?"]),
        ("1. ab\n2. " + "x" * 2_000 + "\n3. same?\n4. same?", True, ["same?"]),
        ("", False, []),
    ],
)
def test_prompts_are_read_from_a_list(text: str, chat: bool, prompts: list[str]) -> None:
    assert parse_prompts(text, chat=chat) == prompts


def sample(at: int, gap: float = 1.0, reason: str = "", **more: Any) -> Sample:
    raw: dict[str, Any] = {
        "sample_id": f"1-{at}",
        "prompt": f"prompt {at}",
        "answer": f"answer {at}",
        "word": str(at),
        "round": 1,
        "off_domain": False,
        "tuned_perplexity": 2.0 + at / 1_000,
        "base_perplexity": (2.0 + at / 1_000) * math.exp(gap),
        "nll_gap": gap,
        "reason": reason,
        "token_count": 3 + at % 5,
    }
    return Sample(**{**raw, **more})  # type: ignore[typeddict-item]


def test_figures_of_a_round() -> None:
    samples = [sample(n) for n in range(6)]
    samples += [sample(n, 0.1, "gap", off_domain=True) for n in range(6, 10)]
    samples.append(sample(10, reason="empty", nll_gap=None, tuned_perplexity=None))
    found = round_figures(1, samples)
    assert (found["kept"], found["prompts"], found["off_domain_kept"]) == (6, 11, 0)
    assert found["reasons"] == {"gap": 4, "empty": 1}
    histogram = gap_histogram(samples, 0.4)
    assert (sum(histogram["in_domain"]), sum(histogram["off_domain"])) == (6, 4)
    assert len(histogram["edges"]) == len(histogram["in_domain"]) + 1
    assert gap_histogram([], None)["edges"] == []
    counts = tau_counts([samples], Filter(confident_share=1))
    assert counts == {"1.1": 10, "1.25": 6, "1.5": 6, "2": 6, "3": 0}
    assert len(refiltered([samples, samples], Filter(confident_share=1), 1.5)) == 6
    spread = diversity(["a b", "a b", "c d"], seed=0)
    assert spread["distinct_1"] == pytest.approx(4 / 6)
    assert spread["distinct_2"] == pytest.approx(2 / 3)
    assert diversity(["a"], seed=0)["mean_rouge_l"] is None


def test_coverage_counts_whole_words() -> None:
    found = coverage(["Blue Whale", "ox", "cat", ""], ["What is a blue whale?", "a fox", "Cat!"])
    assert (found["groups"], found["covered"]) == (3, 2)


def test_the_random_filter_has_the_same_tokens() -> None:
    pool = [sample(n, reason="" if n % 3 else "gap") for n in range(90)]
    pool.append(sample(99, reason="empty"))
    kept = [one for one in pool if not one["reason"]]
    found = random_filter(pool, kept, 1, 0)
    assert 0 <= tokens_of(found) - tokens_of(kept) < 7
    assert found == random_filter(pool, kept, 1, 0) != random_filter(pool, kept, 1, 1)
    assert "1-99" not in {one["sample_id"] for one in found}


def test_steps_of_all_arms() -> None:
    training = language_pb2.LanguageTraining(epochs=2, batch_sequences=4)
    assert steps_of(training, 10, with_replay=False) == 5
    assert steps_of(training, 10, with_replay=True) == 7  # three of four sequences are examples
    assert steps_of(language_pb2.LanguageTraining(max_steps=9), 10, with_replay=True) == 9
    assert steps_of(language_pb2.LanguageTraining(), 1, with_replay=False) == 1


def items(values: list[list[float]]) -> list[list[dict[str, Any]]]:
    return [
        [{"group": f"g{at}", "value": value, "count": 1} for at, value in enumerate(row)]
        for row in values
    ]


def test_intervals_agree_with_a_plain_bootstrap() -> None:
    draw = np.random.default_rng(5)
    values = (draw.random((3, 40)) < 0.6).astype(float)
    found = estimate(table(items(values.tolist())))
    assert found["value"] == pytest.approx(values.mean())
    assert found["count"] == 40
    means = [
        values[np.ix_(draw.integers(0, 3, 3), draw.integers(0, 40, 40))].mean()
        for _ in range(4_000)
    ]
    low, high = np.percentile(means, [2.5, 97.5])
    assert found["low"] == pytest.approx(low, abs=0.03)
    assert found["high"] == pytest.approx(high, abs=0.03)


def test_paired_differences_are_narrower_than_the_parts() -> None:
    draw = np.random.default_rng(6)
    hard = draw.random(60)
    first, second = (items([(hard + gain).tolist()] * 2) for gain in (0.2, 0.0))
    gap = difference(table(first), table(second))
    assert gap["value"] == pytest.approx(0.2)
    assert gap["high"] - gap["low"] < 1e-9
    alone = estimate(table(first))
    assert alone["high"] - alone["low"] > 0.1
    other = table([[{"group": "x", "value": 1.0}]])
    assert difference(table(first), other)["value"] is None


def test_intervals_of_many_groups_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(7)
    many = Table(draw.random((2, 90)), draw.integers(1, 4, (2, 90)).astype(float), ("",) * 90)
    whole = estimate(many)
    monkeypatch.setattr(intervals, "_AT_ONCE", 1_000)
    assert estimate(many) == pytest.approx(whole)


def test_a_loss_that_training_would_refuse_is_refused_before_the_rounds() -> None:
    spec = pb.TuneShiftJobSpec(seed_prompts=["a"], ablations=True)
    spec.base, spec.tuned, spec.target = (f"projects/p/models/{one}" for one in "abc")
    spec.training.patience = 3
    check_tuneshift_spec("p", spec)
    spec.ablations = False
    with pytest.raises(InvalidInput, match="patience"):
        check_tuneshift_spec("p", spec)
    spec.training.loss = language_pb2.LANGUAGE_LOSS_REVERSE_KL
    with pytest.raises(InvalidInput, match="cross-entropy"):
        check_tuneshift_spec("p", spec)


def test_large_seeds_begin_again() -> None:
    assert [as_seed(n) for n in (7, -7, 1 << 63)] == [7, -7, -(1 << 63)]
    assert with_seed(pb.TuneShiftJobSpec(), 1_000_003 * ((1 << 63) - 1) + 5).seed != 0


def test_intervals_weigh_by_count_and_say_where_there_is_nothing() -> None:
    ratio = table(
        [[{"group": "a", "value": 6, "count": 2}, {"group": "b", "value": 1, "count": 5}]]
    )
    assert estimate(ratio)["value"] == pytest.approx(1.0)
    assert estimate(table([[]]))["value"] is None
    assert estimate(Table(np.zeros((1, 1)), np.zeros((1, 1)), ("a",)))["value"] is None
    assert estimate(table([[{"group": "a", "value": 1}]])) == {
        "value": 1.0,
        "low": 1.0,
        "high": 1.0,
        "count": 1,
    }
    assert intervals.DRAWS >= 1_000
