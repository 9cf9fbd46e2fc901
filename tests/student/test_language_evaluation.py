"""Measures of a tiny model against slow references; order of the data; answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from services.common.targets import TargetShard
from services.student.language import evaluation, measures, scoring
from services.student.language.data import TargetBank
from services.student.language.generation import SamplingOptions, generate, text_of
from services.student.language.plan import plan_steps
from services.student.language.scoring import Examinee, Named
from services.torch_common.language.packing import Encoder, answered
from tests.student import language_suite as suite

NONE = np.zeros(0, np.int64)


@pytest.fixture(scope="module")
def who():
    torch.set_num_threads(1)
    return Examinee(suite.make_teacher(sure=8), Encoder(suite.make_tokenizer()))


@torch.no_grad()
def log_q(model, tokens) -> torch.Tensor:
    """Log-probabilities [t, V] of one sequence by itself."""
    return model(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0].log_softmax(-1)


def test_cross_entropy_is_summed_over_the_targets_of_each_sequence(who):
    sequences = suite.sequences_of([*suite.answers(), *suite.texts(3)])
    named = [Named(str(at), "g", one) for at, one in enumerate(sequences)]
    found = scoring.cross_entropies(who, named)
    for item, one in zip(found, sequences, strict=True):
        scores = log_q(who.model, one.tokens)
        wanted = -sum(float(scores[at - 1, one.tokens[at]]) for at in np.flatnonzero(one.is_target))
        assert item.value == pytest.approx(wanted, rel=1e-4)
        assert item.count == one.is_target.sum()


def test_agreement_is_the_divergence_over_k_and_a_tail(who):
    other = suite.make_model(seed=3)
    sequences = suite.sequences_of(suite.answers(4))
    kept = [suite.teach(other, one, "top_k", size=5) for one in sequences]
    bank = TargetBank([TargetShard.from_bytes(TargetShard.encode(kept, kind="top_k"))])
    named = [Named(str(at), str(at), one) for at, one in enumerate(sequences)]
    found = scoring.agreements(who, named, bank)
    for at, one in enumerate(sequences):
        rows = np.flatnonzero(one.is_target) - 1
        p, q = (log_q(m, one.tokens)[rows].double().exp() for m in (other, who.model))
        top = p.topk(5, dim=-1).indices
        a, b = (
            torch.cat([d.gather(1, top), 1 - d.gather(1, top).sum(1, keepdim=True)], 1)
            for d in (p, q)
        )
        assert found["kl_to_teacher"][at].value == pytest.approx(
            float((a * (a / b).log()).sum()), rel=2e-2
        )
        assert found["kl_to_teacher"][at].value <= float((p * (p / q).log()).sum()) + 1e-3
        same = int((p.argmax(1) == q.argmax(1)).sum())
        assert found["top1_agreement"][at].value == same


def test_choices_are_decided_by_the_mean_and_by_the_sum(who):
    records = suite.questions(6)
    found = evaluation.choices(who, records)
    for at, record in enumerate(records):
        sums, means = [], []
        for choice in record.choices:
            prompt, answer = who.encoder.prompt(record.prompt), who.encoder.ids(choice)
            one = answered(prompt, answer)
            scores = log_q(who.model, one.tokens)
            each = [float(scores[i - 1, one.tokens[i]]) for i in np.flatnonzero(one.is_target)]
            sums.append(sum(each))
            means.append(np.mean(each))
        assert found["choice_accuracy"][at].value == (np.argmax(means) == record.choice_index)
        assert found["choice_accuracy_sum"][at].value == (np.argmax(sums) == record.choice_index)
        assert found["choice_accuracy"][at].group == record.group


def test_answers_do_not_depend_on_the_batch_or_on_torch_s_generators(who):
    greedy = SamplingOptions(0.0, 1.0, 12, (), 0)
    prompts = [who.encoder.prompt("a" * n) for n in (1, 9, 4, 9, 2, 30, 7, 5, 3)]
    together = generate(who.model, who.encoder, prompts, greedy, dtype=torch.float32)
    for prompt, answer in zip(prompts, together, strict=True):
        (alone,) = generate(who.model, who.encoder, [prompt], greedy, dtype=torch.float32)
        assert np.array_equal(alone, answer)
        scores = log_q(who.model, np.concatenate([prompt, answer]))
        assert int(scores[len(prompt) - 1].argmax()) == answer[0]
    warm = SamplingOptions(1.0, 0.9, 12, (), 3)
    state = torch.get_rng_state()
    first = generate(who.model, who.encoder, prompts, warm, dtype=torch.float32, seed=1)
    torch.rand(3)
    second = generate(who.model, who.encoder, prompts, warm, dtype=torch.float32, seed=1)
    third = generate(who.model, who.encoder, prompts, warm, dtype=torch.float32, seed=2)
    torch.set_rng_state(state)
    assert max(int(one.max()) for one in first) < who.encoder.vocab_size
    assert all(map(np.array_equal, first, second))
    assert not all(map(np.array_equal, first, third))


def test_a_prompt_that_fills_the_context_gets_no_answer_and_stop_texts_end_one(who):
    greedy = SamplingOptions(0.0, 1.0, 4, (), 0)
    full = np.ones(suite.CONTEXT, np.int32)
    short = who.encoder.prompt("abc")
    (alone,) = generate(who.model, who.encoder, [short], greedy, dtype=torch.float32)
    given = [full, short, full[:0]]
    made = generate(who.model, who.encoder, given, greedy, dtype=torch.float32)
    assert [len(answer) for answer in made] == [0, len(alone), 0]
    assert np.array_equal(made[1], alone)
    ids = who.encoder.ids("one.two;three")
    assert text_of(who.encoder, ids, (";", ".")) == "one"


def test_only_what_is_asked_for_decides_how_answers_are_made(who):
    greedy = SamplingOptions(0.0, 1.0, 40, (), 0)
    own, prompt = who.model.generation_config, who.encoder.prompt("abcabc")
    (before,) = generate(who.model, who.encoder, [prompt], greedy, dtype=torch.float32)
    own.repetition_penalty, own.no_repeat_ngram_size = 9.0, 1
    try:
        (after,) = generate(who.model, who.encoder, [prompt], greedy, dtype=torch.float32)
    finally:
        own.repetition_penalty, own.no_repeat_ngram_size = None, None
    assert np.array_equal(before, after)


def test_every_pass_sees_every_sequence_once_and_likes_lengths_together():
    lengths = np.random.default_rng(0).integers(5, 200, 640)
    found = plan_steps(lengths, NONE, steps=160, batch=8, replay_share=0.25, seed=1)
    for half in (found[:80], found[80:]):
        assert sorted(half.ravel()) == list(range(640))
    assert not np.array_equal(found[:80], found[80:])
    waste = lengths[found].max(1) - lengths[found].mean(1)
    assert waste.mean() < 15 < (lengths.max() - lengths.mean())
    again = plan_steps(lengths, NONE, steps=160, batch=8, replay_share=0.25, seed=1)
    assert np.array_equal(found, again)


@pytest.mark.parametrize(("batch", "share"), [(8, 0.25), (2, 0.25), (5, 0.5)])
def test_replay_fills_its_share(batch, share):
    lengths, again = np.full(10, 9), np.full(3, 9)
    found = plan_steps(lengths, again, steps=100, batch=batch, replay_share=share, seed=0)
    counts = (found >= 10).sum(1)
    assert counts.mean() == pytest.approx(batch * share)
    assert counts.max() - counts.min() <= 1
    assert set(found[found >= 10]) == {10, 11, 12}


def items(values, counts, groups) -> list[measures.Item]:
    return [
        measures.Item(str(at), group, float(value), int(count))
        for at, (value, count, group) in enumerate(zip(values, counts, groups, strict=True))
    ]


def test_intervals_draw_whole_groups():
    rng = np.random.default_rng(0)
    right = rng.integers(0, 2, 40).repeat(10)
    single = measures.estimate(items(right, np.ones(400), map(str, range(400))))
    grouped = measures.estimate(items(right, np.ones(400), map(str, np.arange(400) // 10)))
    assert single["value"] == grouped["value"] == pytest.approx(right.mean())
    width = [one["high"] - one["low"] for one in (single, grouped)]
    assert width[1] == pytest.approx(math.sqrt(10) * width[0], rel=0.15)
    assert single["count"] == 400


def test_a_change_is_paired():
    rng = np.random.default_rng(1)
    counts, groups = rng.integers(5, 50, 60), [str(at) for at in range(60)]
    before = rng.normal(3, 1, 60) * counts
    found = measures.change(
        items(before, counts, groups), items(before - 0.1 * counts, counts, groups)
    )
    assert found["value"] == pytest.approx(-0.1)
    assert found["high"] - found["low"] < 1e-9
    assert "reason" in measures.change(items([1], [1], ["a"]), items([1, 1], [1, 1], ["a", "b"]))
    assert measures.estimate([])["value"] is None
