from __future__ import annotations

import numpy as np
import pytest

from services.common.errors import InvalidInput
from services.common.shards import pack_regions, pack_rows, unpack_regions, unpack_rows
from services.common.tensors import pack_arrays


def test_rows_keep_their_place_around_missing_items() -> None:
    row = np.array([1.5, -2], np.float32)
    rows, valid = unpack_rows(
        "logits", [pack_rows("logits", [None, row]), pack_rows("logits", [row])]
    )
    np.testing.assert_array_equal(valid, [False, True, True])
    np.testing.assert_array_equal(rows, [[0, 0], [1.5, -2], [1.5, -2]])


def test_a_shard_of_missing_items_only_takes_the_others_width() -> None:
    row = np.ones(3, np.float32)
    rows, valid = unpack_rows(
        "logits", [pack_rows("logits", [None, None]), pack_rows("logits", [row])]
    )
    assert rows.shape == (3, 3)
    np.testing.assert_array_equal(valid, [False, False, True])


def test_ragged_regions_round_trip_over_shards() -> None:
    rng = np.random.default_rng(0)
    items = [
        None
        if n == 0
        else (rng.normal(size=(n, 4)).astype(np.float16), np.full((2, 2), n, np.uint8))
        for n in (3, 0, 1, 5)
    ]
    table = unpack_regions([pack_regions(items[:2]), pack_regions(items[2:])])
    np.testing.assert_array_equal(table.valid, [True, False, True, True])
    np.testing.assert_array_equal(np.diff(table.offsets), [3, 0, 1, 5])
    for at, item in enumerate(items):
        if item is not None:
            np.testing.assert_array_equal(table.item(at), item[0])
            np.testing.assert_array_equal(table.maps[at], item[1])


def test_the_same_items_give_the_same_bytes() -> None:
    item = (np.ones((2, 4), np.float16), np.ones((2, 2), np.uint8))
    assert pack_regions([item, None]) == pack_regions([item, None])


@pytest.mark.parametrize("offsets", [[0, 5], [0, 2, 1], [0]])
def test_offsets_that_do_not_fit_are_refused(offsets: list[int]) -> None:
    blob = pack_arrays(
        {
            "embeddings": np.ones((2, 4), np.float16),
            "offsets": np.array(offsets, np.int64),
            "maps": np.ones((1, 2, 2), np.uint8),
            "valid": np.ones(1, np.uint8),
        }
    )
    with pytest.raises(InvalidInput, match="offsets"):
        unpack_regions([blob])
