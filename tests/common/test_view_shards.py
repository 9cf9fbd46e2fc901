"""Shards of teacher outputs for views: found by digest, and refused where they do not fit."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from services.common.augmentation import Augmentation
from services.common.errors import InvalidInput, Precondition
from services.common.tensors import pack_arrays, unpack_arrays
from services.common.view_shards import ViewRow, pack_views, unpack_views

VIEWS = Augmentation("strong", views=2, seed=1)
DIGESTS = [hashlib.sha256(b"%d" % n).hexdigest() for n in range(5)]


def rows(count: int = 5, classes: int = 3, features: int = 0) -> list[ViewRow]:
    rng = np.random.default_rng(0)
    return [
        ViewRow(
            rng.normal(size=(2, classes)).astype(np.float32),
            rng.normal(size=(2, features)).astype(np.float16) if features else None,
        )
        for _ in range(count)
    ]


def test_rows_are_found_by_digest_across_shards() -> None:
    made = rows(features=4)
    shards = [
        pack_views(DIGESTS[:2], [made[0], None], VIEWS),
        pack_views(DIGESTS[2:3], [None], VIEWS),
        pack_views(DIGESTS[3:], made[3:], VIEWS),
    ]
    table = unpack_views(shards, VIEWS, 3)
    assert set(table.rows) == {DIGESTS[0], DIGESTS[3], DIGESTS[4]}
    assert table.features is not None
    for at in (0, 3, 4):
        row = table.rows[DIGESTS[at]]
        np.testing.assert_array_equal(table.logits[row], made[at].logits.astype(np.float16))
        np.testing.assert_array_equal(table.features[row], made[at].features)
    assert unpack_views([pack_views(DIGESTS, rows(), VIEWS)], VIEWS, 3).features is None


def test_the_same_rows_are_the_same_bytes_and_large_logits_stay_finite() -> None:
    made = rows(1)
    assert pack_views(DIGESTS[:1], made, VIEWS) == pack_views(DIGESTS[:1], made, VIEWS)
    huge = ViewRow(np.full((2, 3), 1e6, np.float32))
    assert unpack_views([pack_views(DIGESTS[:1], [huge], VIEWS)], VIEWS, 3).logits.max() == 65504


@pytest.mark.parametrize("other", [Augmentation("flip_crop", 2, 1), Augmentation("strong", 2, 2)])
def test_other_views_are_refused(other: Augmentation) -> None:
    with pytest.raises(Precondition, match="other views") as caught:
        unpack_views([pack_views(DIGESTS, rows(), VIEWS)], other, 3)
    assert set(caught.value.differences) == {"augmentation"}


def test_what_does_not_fit_is_refused() -> None:
    shard = pack_views(DIGESTS, rows(), VIEWS)
    with pytest.raises(Precondition, match="3 columns in 2 views, the manifest has 4 classes"):
        unpack_views([shard], VIEWS, 4)
    with pytest.raises(InvalidInput, match="no image"):
        unpack_views([pack_views(DIGESTS, [None] * 5, VIEWS)], VIEWS, 3)
    with pytest.raises(InvalidInput, match="not a valid safetensors"):
        unpack_views([b"nothing"], VIEWS, 3)
    arrays = unpack_arrays(shard)
    for change, message in [
        ({"digests": None}, "missing"),
        ({"digests": arrays["digests"][:2]}, "shapes"),
        ({"logits": arrays["logits"][:, 0]}, "shapes"),
        ({"logits": arrays["logits"] * np.float16(np.nan)}, "not finite"),
    ]:
        broken = {k: v for k, v in (arrays | change).items() if v is not None}
        with pytest.raises(InvalidInput, match=message):
            unpack_views([pack_arrays(broken)], VIEWS, 3)
