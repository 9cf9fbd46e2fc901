"""Scores, draws, choices, stop texts and the queue, against independent references."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from services.common.admission import Load
from services.common.device import Device
from services.common.errors import NotInTime, Overloaded, Precondition
from services.common.fairness import Flow, Weights
from services.common.targets import TargetShard
from services.teacher.language.batching import TokenBatcher, plan
from services.teacher.language.generation import Batch, SamplingOptions, choose, new_answer
from services.teacher.language.heads import Head
from services.teacher.language.sampling import SizeModel, draw, ids_for, most_probable, seeded
from services.teacher.language.scoring import ScoreInput, score
from services.teacher.language.stopping import AnswerText
from services.teacher.language.targets import TargetOptions, sparse_targets
from services.teacher.language.writing import Writers
from services.torch_common.language.loading import LoadedLanguageModel
from services.torch_common.language.packing import PackedSequence
from tests.teacher.language_models import load_tiny, write_tiny

JOB = Flow("default", shard=True)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> LoadedLanguageModel:
    return load_tiny(write_tiny(tmp_path_factory.mktemp("maths") / "tiny"))


@pytest.fixture(scope="module")
def head(tiny: LoadedLanguageModel) -> Head:
    return Head(tiny.model, tiny.vocab_size)


def skewed(rows: int, vocab: int, seed: int = 0) -> torch.Tensor:
    """Distributions as a language model's: a few likely ids and a long tail."""
    logits = 3 * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))
    return torch.softmax(logits, dim=1)


def test_the_side_of_the_padding_does_not_matter(tiny: LoadedLanguageModel, head: Head) -> None:
    random = np.random.default_rng(0)
    items = [ScoreInput(random.integers(2, 290, n).astype(np.int32), n // 3) for n in (90, 33, 5)]
    together, left = score(tiny, head, items), score(tiny, head, items, side="left")
    for at, item in enumerate(items):
        alone = score(tiny, head, [item])[0]
        np.testing.assert_allclose(together[at], alone, atol=1e-4)
        np.testing.assert_allclose(together[at], left[at], atol=1e-4)


def test_a_model_that_scales_its_logits_otherwise_is_refused(
    tiny: LoadedLanguageModel, head: Head
) -> None:
    head.check(tiny.model)
    hook = tiny.model.lm_head.register_forward_hook(lambda module, given, out: out * 2)
    with pytest.raises(Precondition, match="unknown way"):
        head.check(tiny.model)
    hook.remove()


def test_draws_follow_the_softmax() -> None:
    """Chi-square over all ids of the joined counts of many draws, each too few to show them all."""
    draws, repeats = 7, 4000
    for seed in range(3):
        p = skewed(1, 700, seed)
        kept = draw(p.expand(repeats, -1), draws, np.random.default_rng(seed))
        seen = np.bincount(kept.ids, kept.values, minlength=700)
        assert seen.sum() == draws * repeats
        expected = draws * repeats * p[0].double().numpy()
        order = np.argsort(-expected)
        cells = np.searchsorted(np.cumsum(expected[order]), np.arange(20, draws * repeats, 20))
        edges = np.unique(np.concatenate([[0], cells]))  # about 20 a cell
        expected = np.add.reduceat(expected[order], edges)
        seen = np.add.reduceat(seen[order], edges)
        _, probability = stats.chisquare(seen, expected * seen.sum() / expected.sum())
        assert probability > 1e-3


def test_a_count_is_its_expectation_rounded_up_or_down() -> None:
    p = skewed(40, 5_000, 1)
    for draws in (8, 33, 400):
        counts = np.zeros(p.shape)
        kept = draw(p, draws, np.random.default_rng(draws))
        counts[kept.row, kept.ids] = kept.values
        assert (counts.sum(1) == draws).all()
        assert np.abs(counts - draws * p.double().numpy()).max() < 1 + 1e-4


def test_the_mean_of_many_small_draws_is_the_softmax() -> None:
    """The mean of the estimates lies within 5 standard errors of every id, which are those of a
    count that is rounded up with the probability of its fraction."""
    p, repeats, draws = skewed(1, 50, 2), 4000, 7
    kept = draw(p.expand(repeats, -1), draws, np.random.default_rng(3))
    mean = np.bincount(kept.ids, kept.values, minlength=50) / (repeats * draws)
    exact = p[0].double().numpy()
    fraction = draws * exact % 1
    error = np.sqrt(fraction * (1 - fraction) / repeats) / draws
    assert (np.abs(mean - exact) / error).max() < 5


def test_ids_of_a_draw_ascend_and_depend_on_seed_and_digest_alone() -> None:
    p = skewed(5, 1000)
    one = draw(p, 30, seeded(4, b"a" * 32))
    again = draw(p, 30, seeded(4, b"a" * 32))
    other = draw(p, 30, seeded(4, b"b" * 32))
    np.testing.assert_array_equal(one.ids, again.ids)
    assert one.ids.tolist() != other.ids.tolist()
    assert (np.diff(one.row * 1000 + one.ids) > 0).all()


def test_the_expected_size_is_that_of_many_draws() -> None:
    p = skewed(40, 20_000)
    for draws in (8, 50, 400):
        kept = draw(p, draws, np.random.default_rng(draws))
        sizes = 1 + (kept.ids >= 128) + (kept.ids >= 16_384) + 1 + (kept.values >= 128)
        assert SizeModel([p[:9], p[9:]]).expected(draws) == pytest.approx(
            1 + sizes.sum() / 40, rel=0.05
        )
    model = SizeModel([p])
    chosen = model.draws(40.0)
    assert model.expected(chosen) <= 40 < model.expected(chosen + 1)


def test_the_most_probable_ids() -> None:
    p = skewed(4, 300)
    kept = most_probable(p, 5)
    for row in range(4):
        ids = kept.ids[kept.row == row]
        assert set(ids.tolist()) == set(p[row].topk(5).indices.tolist())
        assert (np.diff(ids) > 0).all()
        values = np.exp(kept.values[kept.row == row])
        np.testing.assert_allclose(values, p[row][torch.from_numpy(ids)], rtol=1e-5)
    assert ids_for(36.0, 49_152) == 8
    assert ids_for(0.0, 49_152) == 1


@pytest.mark.parametrize("kind", ["sampled", "top_k"])
def test_targets_estimate_the_models_own_softmax(
    tiny: LoadedLanguageModel, head: Head, kind: str
) -> None:
    random = np.random.default_rng(5)
    mask = np.ones(100, np.uint8)
    mask[:7] = 0
    one = PackedSequence(random.integers(2, 290, 100).astype(np.int32), mask)
    options = TargetOptions(kind=kind, bytes_per_token=400.0, temperature=2.0)  # type: ignore[arg-type]
    (found,) = sparse_targets(tiny, head, [one], options)
    data = TargetShard.encode([found], kind=kind, temperature=2.0)  # type: ignore[arg-type]
    got = TargetShard.from_bytes(data).sequence(0)
    with torch.inference_mode():
        logits = tiny.model(torch.from_numpy(one.tokens)[None].long()).logits[0, 6:-1] / 2
    exact = torch.softmax(logits[:, : tiny.vocab_size], -1).double().numpy()
    estimate = np.zeros_like(exact)
    estimate[got.row, got.ids] = got.weight
    if kind == "sampled":
        draws = found.values[found.row == 0].sum()
        error = np.sqrt((exact * (1 - exact)).sum() / draws)
        assert np.linalg.norm(estimate - exact) < 1.3 * error
    else:
        np.testing.assert_allclose(estimate[got.row, got.ids], exact[got.row, got.ids], rtol=5e-3)
        np.testing.assert_allclose(got.tail, 1 - estimate.sum(1), atol=1e-5)


def test_choices_follow_the_nucleus() -> None:
    logits = torch.log(torch.tensor([[0.1, 0.5, 0.3, 0.06, 0.04]]))
    uniform = torch.linspace(0, 1 - 1e-9, 2001, dtype=torch.float64)
    for top_p, expected in ((1.0, [0.1, 0.5, 0.3, 0.06, 0.04]), (0.7, [0, 0.625, 0.375, 0, 0])):
        chosen = choose(logits.expand(2001, -1), top_p, uniform)
        share = np.bincount(chosen.numpy(), minlength=5) / 2001
        np.testing.assert_allclose(share, expected, atol=2e-3)


def _write(
    tiny: LoadedLanguageModel, head: Head, prompts: list[np.ndarray], options: SamplingOptions
) -> list[list[int]]:
    batch = Batch(tiny, head, [new_answer(tiny, p, options, 0) for p in prompts], options, chunk=16)
    while not batch.done:
        batch.step()
    return [answer.text.ids for answer in batch.answers]


def test_writing_with_a_cache_is_writing_without_one(tiny: LoadedLanguageModel, head: Head) -> None:
    random = np.random.default_rng(6)
    prompts = [random.integers(2, 290, n).astype(np.int32) for n in (11, 3, 30)]
    for options in (SamplingOptions(max_tokens=12), SamplingOptions(1.0, 0.8, 12, seed=3)):
        together = _write(tiny, head, prompts, options)
        assert together == [_write(tiny, head, [p], options)[0] for p in prompts]
        for prompt, made in zip(prompts, together, strict=True):
            uniform = new_answer(tiny, prompt, options, 0).uniform
            ids = list(prompt)
            for at, token in enumerate(made):
                with torch.inference_mode():
                    logits = tiny.model(torch.tensor([ids])).logits[0, -1:, : tiny.vocab_size]
                if options.temperature:
                    point = torch.tensor(uniform[at : at + 1])
                    assert int(choose(logits, options.top_p, point)) == token
                else:
                    assert int(logits.argmax()) == token
                ids.append(token)


def test_rows_that_end_leave_the_others_alone(tiny: LoadedLanguageModel, head: Head) -> None:
    prompts = [np.full(100 + n, 7, np.int32) for n in range(0, 24, 4)]  # rooms of 28 to 8 tokens
    options = SamplingOptions(temperature=1.0, max_tokens=100, seed=1)
    together = _write(tiny, head, prompts, options)
    assert together == [_write(tiny, head, [p], options)[0] for p in prompts]
    assert all(len(ids) <= 128 - len(p) for ids, p in zip(together, prompts, strict=True))


def test_stop_texts_end_an_answer_and_are_never_given(tiny: LoadedLanguageModel) -> None:
    ids = tiny.encoder.ids("the quick brown fox jumps").tolist()
    text = AnswerText(tiny.encoder, ("wn fo", "zebra"))
    pieces = []
    for token in ids:
        text.add(token)
        pieces.append(text.take())
        assert not any("w" in piece for piece in pieces)
        if text.stopped:
            break
    text.finish()
    assert "".join([*pieces, text.take(last=True)]) == text.text == "the quick bro"


def test_characters_of_several_tokens_come_whole(tiny: LoadedLanguageModel) -> None:
    said = "naïve 東京 🙂 end"
    text = AnswerText(tiny.encoder)
    pieces = []
    for token in tiny.encoder.ids(said).tolist():
        text.add(token)
        pieces.append(text.take())
    text.finish()
    assert "".join(pieces) + text.take(last=True) == said
    assert not any("\ufffd" in piece for piece in pieces)


def test_batches_hold_items_of_one_length() -> None:
    sizes = [5, 300, 7, 290, 100, 6, 310]
    batches = plan(sizes, 1000, pass_tokens=64)
    assert batches == [[6, 1, 3], [4], [2, 5, 0]]
    assert plan(sizes, 10, limit=2) == [[at] for at in (6, 1, 3, 4, 2, 5, 0)]
    assert sorted(at for batch in plan(sizes, 400, limit=2) for at in batch) == list(range(7))


def _queue(
    executor: ThreadPoolExecutor, **more: int
) -> tuple[TokenBatcher[int, int], list[list[int]]]:
    seen: list[list[int]] = []

    def run(items: list[int]) -> list[int]:
        seen.append(items)
        return [-item for item in items]

    given = {"wait_ms": 20, **more}
    queue = TokenBatcher(run, Device(executor), name="test", size=lambda item: item, **given)  # type: ignore[arg-type]
    return queue, seen


async def test_the_queue_joins_what_is_alike_and_keeps_every_answer() -> None:
    with ThreadPoolExecutor(1) as executor:
        queue, seen = _queue(executor, pass_tokens=20, budget=400)
        sizes = [10, 200, 12, 190, 11, 390]
        served = await asyncio.gather(*(queue.submit([size]) for size in sizes))
        assert [one[0].result for one in served] == [-size for size in sizes]
        assert [10, 11, 12] in [sorted(batch) for batch in seen]
        assert max(len(batch) for batch in seen) == 3
        shard = await queue.submit(sizes, flow=JOB)
        assert [one.result for one in shard] == [-size for size in sizes]


async def test_a_full_queue_refuses_and_callers_that_left_are_dropped() -> None:
    with ThreadPoolExecutor(1) as executor:
        queue, seen = _queue(executor, max_items=3, max_tokens=100)
        first = asyncio.create_task(queue.submit([5, 6, 7]))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="the limits are 3 and 100"):
            await queue.submit([8], flow=JOB)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        served = await queue.submit([8, 9], flow=JOB)
        assert [one.result for one in served] == [-8, -9]
        assert [sorted(batch) for batch in seen] == [[8, 9]]


async def test_what_waits_is_counted_once() -> None:
    with ThreadPoolExecutor(1) as executor:
        queue, seen = _queue(executor, budget=10, wait_ms=1)
        await asyncio.gather(*(queue.submit([5, 6]) for _ in range(3)))
        first, second = (asyncio.create_task(queue.submit([size, size])) for size in (7, 8))
        while [7] not in seen:
            await asyncio.sleep(0)
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        assert (queue._waiting, queue._door.total) == (0, Load())
        assert [8] not in seen


async def test_a_call_without_time_for_the_queue_is_refused() -> None:
    with ThreadPoolExecutor(1) as executor:
        queue, _ = _queue(executor)
        queue._meter.pace.observe(100, 100.0, time.perf_counter())
        waiting = asyncio.create_task(queue.submit([50]))
        await asyncio.sleep(0)
        with pytest.raises(NotInTime, match="answer in about 66"):
            await queue.submit([5], time_left_s=10)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert (await queue.submit([5], flow=JOB, time_left_s=10))[0].result == -5


async def test_tokens_that_do_not_fit_into_memory_run_in_halves() -> None:
    with ThreadPoolExecutor(1) as executor:
        seen: list[list[int]] = []

        def run(items: list[int]) -> list[int]:
            seen.append(items)
            if len(items) * items[0] > 100:
                raise MemoryError
            return [-item for item in items]

        queue = TokenBatcher(run, Device(executor), name="test", size=int, budget=1000)
        items = [30, 31, 32, 33, 34, 35, 36]
        served = await asyncio.gather(*(queue.submit([one]) for one in items))
        assert [one[0].result for one in served] == [-item for item in items]
        assert seen[0] == items[::-1]
        seen.clear()
        await asyncio.gather(*(queue.submit([one]) for one in items))
        assert max(len(batch) * batch[0] for batch in seen) <= 126


async def test_answers_are_written_in_turn_and_left_turns_are_free() -> None:
    writers = Writers(1, 40, Weights())
    order: list[str] = []

    async def call(name: str, flow: Flow) -> None:
        async with writers.room(flow, 1):
            order.append(name)
            await asyncio.sleep(0.001)

    a, b = Flow("a"), Flow("b")
    flood = [asyncio.create_task(call(f"a{n}", a)) for n in range(10)]
    await asyncio.sleep(0)
    lone = asyncio.create_task(call("b", b))
    await asyncio.sleep(0)
    flood[3].cancel()
    await asyncio.gather(lone, *flood, return_exceptions=True)
    assert order.index("b") == 1
    assert "a3" not in order
    assert len(order) == 10
    held = asyncio.create_task(call("held", a))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        async with writers.room(b, 40):
            pass
    await held
    async with writers.room(b, 50):
        pass


def test_a_file_of_another_kind_is_no_model(tmp_path: Path) -> None:
    from services.common.errors import InvalidInput

    write_tiny(tmp_path / "tiny")
    (tmp_path / "tiny" / "model.safetensors").unlink()
    torch.save({"x": torch.zeros(1)}, tmp_path / "tiny" / "pytorch_model.bin")
    with pytest.raises(InvalidInput, match=r"holds no \.safetensors"):
        load_tiny(tmp_path / "tiny")
