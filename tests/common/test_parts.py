"""Batches cut by a service's limits."""

from __future__ import annotations

import pytest
from stillhouse.common.v1 import info_pb2

from services.common.parts import in_parts


def parts(sizes: list[int], **limits: int) -> list[list[int]]:
    return in_parts(sizes, lambda size: size, info_pb2.Limits(**limits))


def test_by_number_of_items() -> None:
    assert parts([1] * 5, max_batch_items=2) == [[1, 1], [1, 1], [1]]


def test_by_half_a_message() -> None:
    assert parts([400, 400, 400], max_message_bytes=2000) == [[400, 400], [400]]


def test_a_large_message_is_not_filled() -> None:
    assert [len(part) for part in parts([3 << 20] * 5, max_message_bytes=1 << 30)] == [2, 2, 1]


@pytest.mark.parametrize("at", [0, 1, 2])
def test_what_no_message_holds_is_alone_and_order_is_kept(at: int) -> None:
    sizes = [10, 20]
    sizes.insert(at, 10_000)
    found = parts(sizes, max_message_bytes=2000)
    assert [10_000] in found
    assert [size for part in found for size in part] == sizes


def test_without_limits_the_usual_ones_hold() -> None:
    assert [len(part) for part in parts([1] * 600)] == [256, 256, 88]
    assert parts([]) == []
