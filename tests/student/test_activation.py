from __future__ import annotations

import numpy as np

from services.student.activation import active_columns


def test_the_weaker_half_by_mean_of_the_five_highest_goes() -> None:
    presence = np.random.default_rng(0).random((40, 200)).astype(np.float32)
    by_hand = np.array([np.sort(presence[:, j])[-5:].mean() for j in range(200)])
    kept = active_columns(presence)
    assert len(kept) == 100
    assert by_hand[kept].min() >= np.sort(by_hand)[100]
    assert (np.diff(kept) > 0).all()


def test_a_short_list_stays_whole_and_few_images_are_enough() -> None:
    assert len(active_columns(np.zeros((3, 128)))) == 128
    assert 0 < len(active_columns(np.random.default_rng(1).random((2, 300)))) <= 150
