"""Batches of different lengths: what is padded, and that nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from services.student.language import objective
from services.student.language.data import by_length, collate
from services.student.language.objective import passes, target_logits
from services.torch_common.language.packing import PackedSequence
from tests.student.language_suite import make_model


def sequence(length: int, seed: int) -> PackedSequence:
    rng = np.random.default_rng(seed)
    is_target = np.ones(length, np.uint8)
    is_target[: max(1, length // 3)] = 0
    return PackedSequence(rng.integers(1, 250, length).astype(np.int32), is_target)


def cost(groups: list[tuple[slice, int]]) -> int:
    return sum(
        (rows.stop - rows.start) * longest + objective.PASS_TOKENS for rows, longest in groups
    )


def best_cost(lengths: list[int]) -> int:
    """The least cost over all ways to cut rising lengths, by brute force."""
    count, found = len(lengths), []
    for cuts in range(1 << (count - 1)):
        ends = [at + 1 for at in range(count - 1) if cuts >> at & 1] + [count]
        starts = [0, *ends[:-1]]
        found.append(
            cost([(slice(a, b), lengths[b - 1]) for a, b in zip(starts, ends, strict=True)])
        )
    return min(found)


@pytest.mark.parametrize("seed", range(8))
def test_passes_cover_all_rows_and_cost_little(seed: int) -> None:
    lengths = np.sort(np.random.default_rng(seed).integers(1, 300, 9))
    groups = passes(lengths)
    rows = [at for some, _ in groups for at in range(some.start, some.stop)]
    assert rows == list(range(9))
    assert all(longest == lengths[some].max() for some, longest in groups)
    assert best_cost(lengths.tolist()) <= cost(groups) <= 1.25 * best_cost(lengths.tolist())


def test_like_lengths_and_other_orders_stay_together() -> None:
    assert passes(np.array([60, 61, 64])) == [(slice(0, 3), 64)]
    assert passes(np.array([400, 3, 3, 3])) == [(slice(0, 4), 400)]
    assert passes(np.array([7])) == [(slice(0, 1), 7)]


def test_logits_and_gradients_do_not_depend_on_the_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight short sequences and two long ones, padded and not."""
    lengths = [9, 90, 12, 7, 10, 80, 11, 9, 8, 13]
    batch = collate(by_length([sequence(length, at) for at, length in enumerate(lengths)]))
    found = []
    for pass_tokens in (1 << 30, 16):
        monkeypatch.setattr(objective, "PASS_TOKENS", pass_tokens)
        model = make_model()
        logits = target_logits(model, batch)
        torch.nn.functional.cross_entropy(logits, batch.labels).backward()
        grads = torch.cat([one.grad.flatten() for one in model.parameters()])
        found.append((logits.detach(), grads))
    assert len(passes(batch.attention_mask.sum(dim=1).numpy())) == 2
    assert len(found[0][0]) == batch.token_count
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
