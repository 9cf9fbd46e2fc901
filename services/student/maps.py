"""Two-dimensional maps of concepts and classes: where a word or a class lies among the words."""

from __future__ import annotations

import numpy as np

from services.common.presence import centred_directions
from services.student.data import ConceptData, Floats, Ints, TextBank

_SMALLEST_NORM = 1e-12


def class_regions(data: ConceptData, rows: Ints, image_mean: Floats) -> Floats:
    """Unit direction [K, D] of the mean centred region of each class over the items `rows`.

    A class without items there gets zeros. Items are read one at a time: all
    regions in float32 would double the memory that the data takes.
    """
    hot = data.labels.hot
    sums = np.zeros((hot.shape[1], len(image_mean)), np.float64)
    for row in rows:
        regions = data.embeddings[data.offsets[row] : data.offsets[row + 1]]
        sums[hot[row]] += centred_directions(regions, image_mean).mean(axis=0)
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    return np.asarray(sums / np.maximum(norms, _SMALLEST_NORM), np.float32)


def flat_maps(bank: TextBank, classes: Floats) -> tuple[Floats, Floats]:
    """Places of words [M, 2] and of class directions [K, 2] on the words' two largest axes.

    The axes are the principal directions of the centred unit text embeddings; each axis's largest
    component is positive, so that the same words always give the same map. Regions vary in more
    directions than these two: classes lie nearer to the middle than words do.
    """
    words = centred_directions(bank.text, bank.text_mean).astype(np.float64)
    centre = words.mean(axis=0)
    _, vectors = np.linalg.eigh((words - centre).T @ (words - centre))
    axes = vectors[:, ::-1][:, :2]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    places = [(part - centre) @ axes for part in (words, classes.astype(np.float64))]
    first, second = (np.pad(one, ((0, 0), (0, 2 - one.shape[1]))) for one in places)
    return first.astype(np.float32), second.astype(np.float32)
