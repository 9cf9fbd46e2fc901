"""Leave out concepts that hardly occur in the data (Label-free CBM's activation filter).

A concept's activation is the mean of its five highest presences; the constant that the paper gives
for CLIP means
nothing to another encoder, so the threshold is a percentile of the list's own activations.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

TOP_IMAGES = 5
WEAKEST_PERCENT = 50.0
SHORT_LIST = 128
"""A list up to this long was chosen by someone for this task: all of it stays."""


def active_columns(
    presence: npt.NDArray[np.floating], percent: float = WEAKEST_PERCENT
) -> npt.NDArray[np.int64]:
    """Columns of presence [n, M] that stay, ascending: activation at or above the percentile."""
    items, concepts = presence.shape
    if concepts <= SHORT_LIST or percent <= 0:
        return np.arange(concepts)
    top = min(TOP_IMAGES, items)
    activation = np.partition(presence, items - top, axis=0)[-top:].mean(axis=0)
    return np.flatnonzero(activation >= np.percentile(activation, percent))
