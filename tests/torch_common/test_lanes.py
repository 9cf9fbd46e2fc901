"""Parts of a pass: how it is cut, what comes back, and that the bits depend on nothing else."""

from __future__ import annotations

import threading

import pytest
import torch

from services.torch_common.lanes import Lanes
from tests.torch_common.other_threads import set_elsewhere


@pytest.mark.parametrize(
    ("threads", "size", "wanted"),
    [
        (2, 16, [8, 8]),
        (2, 5, [3, 3]),
        (2, 3, [3]),
        (1, 16, [16]),
        (4, 4, [2, 2]),
        (3, 16, [6, 6, 6]),
        (3, 32, [11, 11, 11]),
        (64, 16, [2] * 8),
        (64, 41, [3] * 14),
    ],
)
def test_a_pass_is_cut_into_equal_parts_and_none_is_tiny(
    threads: int, size: int, wanted: list[int]
) -> None:
    assert Lanes(threads).sizes(size) == wanted


@pytest.mark.parametrize("threads", [0, -1])
def test_lanes_need_threads(threads: int) -> None:
    with pytest.raises(ValueError, match="lanes need threads"):
        Lanes(threads)


def test_results_come_in_order_and_parts_of_padding_are_not_computed() -> None:
    seen: list[tuple[int, int]] = []

    def part(items: list[int], size: int) -> list[int]:
        seen.append((len(items), size))
        return [item * item for item in items]

    lanes = Lanes(2)
    assert lanes.run(part, list(range(16)), 16) == [n * n for n in range(16)]
    assert lanes.run(part, list(range(9)), 16) == [n * n for n in range(9)]
    assert lanes.run(part, [3], 16) == [9]
    assert sorted(seen) == [(1, 8), (1, 8), (8, 8), (8, 8), (8, 8)]


def test_parts_run_side_by_side_with_their_share_of_the_threads() -> None:
    meet = threading.Barrier(2, timeout=20)

    def part(items: list[int], size: int) -> list[int]:
        meet.wait()
        return [torch.get_num_threads() for _ in items]

    assert Lanes(4, least=8).run(part, list(range(16)), 16) == [2] * 16


def test_a_part_keeps_its_threads_whatever_other_threads_set() -> None:
    before = torch.get_num_threads()

    def part(items: list[int], size: int) -> list[int]:
        set_elsewhere(1)
        return [torch.get_num_threads() for _ in items]

    try:
        assert Lanes(4, least=8).run(part, list(range(16)), 16) == [2] * 16
    finally:
        torch.set_num_threads(before)


def test_what_a_part_raises_is_raised_once_all_have_ended() -> None:
    ended = threading.Event()

    def part(items: list[int], size: int) -> list[int]:
        if 0 in items:
            raise MemoryError("too large")
        ended.set()
        return items

    with pytest.raises(MemoryError, match="too large"):
        Lanes(2).run(part, list(range(8)), 8)
    assert ended.is_set()


def test_bits_depend_on_the_size_of_the_pass_alone() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 3), torch.nn.ReLU(), torch.nn.Flatten())
    images = list(torch.randn(16, 3, 20, 20))

    def part(items: list[torch.Tensor], size: int) -> list[torch.Tensor]:
        rest = torch.zeros(size - len(items), 3, 20, 20)
        with torch.inference_mode():
            return list(network(torch.cat([torch.stack(items), rest])))[: len(items)]

    lanes = Lanes(2)
    whole = lanes.run(part, images, 16)
    for count in (3, 8, 11):
        again = lanes.run(part, images[:count], 16)
        assert all(torch.equal(one, two) for one, two in zip(whole, again, strict=False))


def test_bits_do_not_depend_on_where_in_a_shard_an_item_stands() -> None:
    torch.manual_seed(0)
    shapes: set[int] = set()
    layer = torch.nn.MultiheadAttention(64, 4, batch_first=True).eval()
    images = list(torch.randn(16, 49, 64))

    def part(items: list[torch.Tensor], size: int) -> list[torch.Tensor]:
        shapes.add(size)
        batch = torch.cat([torch.stack(items), torch.zeros(size - len(items), 49, 64)])
        with torch.inference_mode():
            return list(layer(batch, batch, batch)[0])[: len(items)]

    lanes = Lanes(3)
    whole = lanes.run(part, images, 16)
    for known in (1, 5, 10):  # items that have their results already, so that the others move up
        again = lanes.run(part, images[known:], 16)
        assert all(torch.equal(*pair) for pair in zip(whole[known:], again, strict=True))
    assert len(shapes) == 1
