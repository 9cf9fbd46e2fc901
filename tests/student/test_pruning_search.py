"""Candidates within budgets, and the rounds that large cuts take."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from services.common.errors import InvalidInput, Precondition
from services.student.pruning.latency import search_latency
from services.student.pruning.prior import Prior
from services.student.pruning.schedule import hop_shares
from services.student.pruning.scores import Importance
from services.student.pruning.search import Budget, Grid, search, smallest
from services.student.pruning.shape import Shape

SMALL = Shape(30, 576, 1536, 9, 3, 64, 49152, tied=True)  # SmolLM2-135M


def importance_of(shape: Shape, seed: int = 0) -> Importance:
    generator = torch.Generator().manual_seed(seed)

    def scores(*size: int):
        return torch.rand(size, generator=generator).square()

    return Importance(
        neurons=scores(shape.layers, shape.intermediate_size),
        heads=scores(shape.layers, shape.attention_heads),
        channels=scores(shape.hidden_size),
        layers=scores(shape.layers),
    )


def test_parameters_are_those_of_the_model_on_the_hub():
    assert SMALL.parameters == 134_515_008
    assert SMALL.non_embedding_parameters == 134_515_008 - 49152 * 576
    assert replace(SMALL, tied=False).parameters == 134_515_008 + 49152 * 576


@pytest.mark.parametrize("share", [0.9, 0.7, 0.5, 0.25])
@pytest.mark.parametrize("what", ["parameters", "share", "bytes"])
def test_candidates_are_within_the_budget_and_near_it(share, what):
    limit = int(share * SMALL.parameters)
    budget = {
        "parameters": Budget(max_parameters=limit),
        "share": Budget(non_embedding_share=share),
        "bytes": Budget(max_bytes=2 * limit + 1, bytes_per_parameter=2),
    }[what]
    found = search(SMALL, importance_of(SMALL), budget)
    assert [one.cost for one in found] == sorted(one.cost for one in found)
    assert all(one.cost > 0 for one in found)
    most = int(share * SMALL.non_embedding_parameters) if what == "share" else limit
    for one in found:
        one.shape.check_within(SMALL)
        size = one.shape.parameters
        if what == "share":
            size = one.shape.non_embedding_parameters
        assert size <= most
        if one.kind == "depth":
            layer = SMALL.layer_parameters
            assert most - size < layer
        else:
            assert size >= 0.95 * most
        assert kind_of(one.shape) == one.kind
    assert {one.kind for one in found} == {"width", "depth", "mixed"}


def kind_of(shape: Shape) -> str:
    deep = shape.layers == SMALL.layers
    wide = replace(shape, layers=SMALL.layers) == SMALL
    return "width" if deep else "depth" if wide else "mixed"


def test_no_axis_has_room_for_one_more_step():
    budget = Budget(max_parameters=90_000_000)
    grid = Grid()
    for one in search(SMALL, importance_of(SMALL), budget, grid=grid, per_kind=50):
        shape = one.shape
        if one.kind == "depth":
            continue
        neurons = [x for x in grid.intermediate_sizes(SMALL) if x > shape.intermediate_size]
        hidden = [
            x for x in grid.hidden_sizes(SMALL, shape.attention_heads) if x > shape.hidden_size
        ]
        larger = [replace(shape, intermediate_size=x) for x in neurons[:1]]
        larger += [replace(shape, hidden_size=x) for x in hidden[:1]]
        larger += [replace(shape, layers=shape.layers + 1)] if shape.layers < 30 else []
        assert all(x.parameters > 90_000_000 for x in larger)


def test_all_shapes_of_a_small_grid_are_considered():
    """Against trying every shape: none of the same kind that is within the budget costs less."""
    base = Shape(3, 32, 48, 4, 2, 8, 40, tied=False)
    importance, grid = importance_of(base), Grid(hidden=8, intermediate=16)
    prior, limit = Prior.of(importance, base), 12_000
    found = search(base, importance, Budget(max_parameters=limit), grid=grid, per_kind=1)
    for one in found:
        costs = []
        for layers, heads, hidden, neurons in itertools.product(
            range(1, 4), (2, 4), (8, 16, 24, 32), (16, 32, 48)
        ):
            shape = replace(
                base,
                layers=layers,
                attention_heads=heads,
                hidden_size=hidden,
                intermediate_size=neurons,
            )
            cut = replace(shape, layers=3) != base
            kind = "mixed" if cut and layers < 3 else "width" if cut else "depth"
            if kind == one.kind and 0.95 * limit <= shape.parameters <= limit:
                costs.append(prior.cost(shape))
        assert not costs or one.cost == min(costs)
    assert found


def test_sizes_follow_the_grid_and_the_number_of_heads():
    grid = Grid()
    assert grid.hidden_sizes(SMALL, 9) == [72, 144, 216, 288, 360, 432, 504, 576]
    assert grid.hidden_sizes(SMALL, 6) == [96, 192, 288, 384, 480, 576]
    large = Shape(32, 4096, 14336, 32, 8, 128, 128256, tied=False)
    assert grid.hidden_sizes(large, 32)[:3] == [32, 64, 96]
    assert grid.hidden_sizes(large, 24)[:2] == [96, 192]
    assert grid.intermediate_sizes(replace(SMALL, intermediate_size=100)) == [32, 64, 96, 100]


def test_impossible_budgets_say_the_least_possible():
    least = smallest(SMALL)
    # With 3 heads the hidden size is a multiple of 96, with 9 of 72: the embedding decides.
    assert (least.layers, least.attention_heads, least.hidden_size) == (1, 9, 72)
    for budget, field in (
        (Budget(max_parameters=1000), "budget.max_parameters"),
        (Budget(max_bytes=1000), "budget.max_bytes"),
    ):
        with pytest.raises(InvalidInput, match=f"least possible is {least.parameters:,}") as caught:
            search(SMALL, importance_of(SMALL), budget)
        assert caught.value.field == field
    exact = Budget(max_parameters=least.parameters)
    assert [one.shape for one in search(SMALL, importance_of(SMALL), exact)] == [least]
    inner = smallest(SMALL, size=lambda one: one.non_embedding_parameters)
    with pytest.raises(InvalidInput, match=f"least possible is {inner.non_embedding_parameters:,}"):
        search(SMALL, importance_of(SMALL), Budget(non_embedding_share=1e-6))


@pytest.mark.parametrize(
    ("budget", "match"),
    [
        (Budget(), "set one of"),
        (Budget(max_parameters=5, max_bytes=5), "set one of"),
        (Budget(max_parameters=-5), "negative"),
        (Budget(non_embedding_share=1.0), "between 0 and 1"),
        (Budget(non_embedding_share=float("nan")), "between 0 and 1"),
        (Budget(max_parameters=134_515_008), "nothing is to be cut"),
    ],
)
def test_budgets_that_are_none_are_refused(budget, match):
    with pytest.raises(InvalidInput, match=match):
        search(SMALL, importance_of(SMALL), budget)


def test_scores_of_another_model_are_refused():
    with pytest.raises(Precondition, match="another model"):
        search(SMALL, importance_of(replace(SMALL, layers=2)), Budget(non_embedding_share=0.5))


def test_the_prior_prefers_neurons_and_width():
    even = Importance(
        neurons=torch.ones(30, 1536),
        heads=torch.ones(30, 9),
        channels=torch.ones(576),
        layers=torch.ones(30),
    )
    prior = Prior.of(even, SMALL)
    assert prior.cost(SMALL) == 0
    thin = prior.cost(replace(SMALL, intermediate_size=768))
    narrow = prior.cost(replace(SMALL, hidden_size=288))
    shallow = prior.cost(replace(SMALL, layers=15))
    assert 0 < thin < narrow < shallow


def test_latency_is_kept_as_measured():
    measured = []

    def took_ms(shape: Shape) -> float:
        measured.append(shape)
        return shape.layers * (10 + shape.intermediate_size * 1e-2)

    limit = 600.0
    found = search_latency(SMALL, importance_of(SMALL), limit, took_ms)
    assert {one.kind for one in found} >= {"depth", "mixed"}
    assert all(one.latency_ms == took_ms(one.shape) <= limit for one in found)
    deepest = next(one.shape for one in found if one.kind == "depth")
    assert limit < took_ms(replace(deepest, layers=deepest.layers + 1))
    assert len(set(measured)) < 26


def test_an_impossible_time_says_what_is_possible():
    def took_ms(shape: Shape) -> float:
        return shape.layers * (10 + shape.intermediate_size * 1e-2)

    match = r"least possible \(1 layer, hidden size 72, 32 neurons, 9 heads\) takes 10.3 ms"
    with pytest.raises(InvalidInput, match=match) as caught:
        search_latency(SMALL, importance_of(SMALL), 1.0, took_ms)
    assert caught.value.field == "budget.max_latency_ms"
    with pytest.raises(InvalidInput, match="nothing is to be cut: the whole model takes 761 ms"):
        search_latency(SMALL, importance_of(SMALL), 1e4, took_ms)


def test_where_next_to_nothing_is_fast_enough_the_smallest_is_found():
    least = smallest(SMALL)
    found = search_latency(
        SMALL, importance_of(SMALL), 1.0, lambda shape: 1.0 if shape == least else 2.0
    )
    assert [(one.shape, one.kind, one.latency_ms) for one in found] == [(least, "mixed", 1.0)]


def test_a_round_goes_an_even_step():
    inner = SMALL.non_embedding_parameters
    whole = Budget(non_embedding_share=0.25)
    half = replace(whole, rounds=2)
    assert half.step_of(SMALL).parameters == pytest.approx(inner / 2, abs=2)
    assert half.limit_of(SMALL) == whole.limit_of(SMALL) == whole.step_of(SMALL)
    assert all(
        0.475 * inner <= one.shape.non_embedding_parameters <= 0.5 * inner
        for one in search(SMALL, importance_of(SMALL), half)
        if one.kind != "depth"
    )
    bytes_limit = Budget(max_bytes=SMALL.parameters, bytes_per_parameter=4, rounds=2)
    assert bytes_limit.step_of(SMALL).parameters == pytest.approx(SMALL.parameters / 2, abs=2)
    cut = replace(SMALL, layers=15)  # what an earlier round has left: shares are of the whole
    later = replace(whole, share_of=inner)
    assert later.limit_of(cut) == later.step_of(cut) == whole.limit_of(SMALL)
    with pytest.raises(InvalidInput, match="least possible"):  # though the first step could be
        search(SMALL, importance_of(SMALL), Budget(non_embedding_share=1e-5, rounds=9))
    with pytest.raises(InvalidInput, match="nothing is to be cut"):
        search(cut, importance_of(cut), Budget(non_embedding_share=0.75, share_of=inner, rounds=2))


def test_large_cuts_take_several_rounds():
    assert hop_shares(0.7) == [0.7]
    assert hop_shares(2 / 3) == [2 / 3]
    assert hop_shares(0.5) == [pytest.approx(0.5**0.5), 0.5]
    assert hop_shares(0.125, largest_cut=0.5) == [pytest.approx(0.5), pytest.approx(0.25), 0.125]
    for target in (0.3, 0.1, 0.01):
        shares = [1.0, *hop_shares(target)]
        ratios = [after / before for before, after in itertools.pairwise(shares)]
        assert min(ratios) >= 2 / 3 - 1e-9
        assert max(ratios) == pytest.approx(min(ratios))
    for wrong in (0.0, 1.0, 1.5, float("nan")):
        with pytest.raises(InvalidInput, match="between 0 and 1"):
            hop_shares(wrong)
