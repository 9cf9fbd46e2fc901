"""How strongly each concept is present in each image: one numpy implementation for every service.

Presence of concept j in image I is ``c_j(I) = max(0, max_r cos(v_r - mu, t_j - tau))`` over the
regions r of the image, with mu the mean region embedding of a fixed reference manifest and tau the
mean text embedding of the concept set (InFiConD, arXiv 2406.17838, with centring added: without it
nearly all cosines of an encoder whose two sides were aligned after training are negative, and
presence is zero).

Regions are ragged: all regions of all images lie in one array ``[sum R, D]``; ``offsets`` ``[n +
1]`` says where each image's regions start, so image i owns rows ``offsets[i]:offsets[i + 1]``, the
whole image first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_ROWS_PER_CHUNK = 4096
_SMALLEST_NORM = 1e-12

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Presence:
    """Presence of m concepts in n images.

    Attributes:
        values: float32 ``[n, m]`` in [0, 1].
        region: int32 ``[n, m]``, the region of the image (0 is its first) where the cosine is
            largest; the first one on a tie.
    """

    values: Floats
    region: npt.NDArray[np.int32]


def presence(
    regions: npt.ArrayLike,
    offsets: npt.ArrayLike,
    texts: npt.ArrayLike,
    region_mean: npt.ArrayLike,
    text_mean: npt.ArrayLike,
) -> Presence:
    """Presence of every concept in every image, and the region that decides it.

    Args:
        regions: ``[sum R, D]``, usually float16; computed in float32.
        offsets: ``[n + 1]`` ascending integers from 0 to sum R; every image has at least one
            region.
        texts: ``[m, D]`` text embeddings t_j.
        region_mean: ``[D]``, mu.
        text_mean: ``[D]``, tau.

    Raises:
        ValueError: shapes that do not fit, an image without regions, or values that are not finite.
    """
    starts, concepts, chunks = _cosines(regions, offsets, texts, region_mean, text_mean)
    values = np.empty((len(starts) - 1, len(concepts)), np.float32)
    region = np.empty(values.shape, np.int32)
    for first, last, cosines, local in chunks:
        values[first:last] = np.maximum.reduceat(cosines, local[:-1], axis=0)
        region[first:last] = _deciding(cosines, values[first:last], local)
    return Presence(np.maximum(values, 0.0, out=values), region)


def presence_values(
    regions: npt.ArrayLike,
    offsets: npt.ArrayLike,
    texts: npt.ArrayLike,
    region_mean: npt.ArrayLike,
    text_mean: npt.ArrayLike,
) -> Floats:
    """The same values ``[n, m]`` alone: which region decides takes longer than all the rest."""
    starts, concepts, chunks = _cosines(regions, offsets, texts, region_mean, text_mean)
    values = np.empty((len(starts) - 1, len(concepts)), np.float32)
    for first, last, cosines, local in chunks:
        values[first:last] = np.maximum.reduceat(cosines, local[:-1], axis=0)
    return np.maximum(values, 0.0, out=values)


def region_cosines(
    regions: npt.ArrayLike,
    texts: npt.ArrayLike,
    region_mean: npt.ArrayLike,
    text_mean: npt.ArrayLike,
) -> Floats:
    """Centred cosines ``[R, m]`` in [-1, 1] of every region with every concept, before maximum and
    clip.
    """
    concepts = centred_directions(texts, text_mean)
    vectors = np.asarray(regions)
    vectors, mean = _checked_regions(vectors, region_mean, concepts.shape[1], len(vectors))
    return np.asarray(_unit_rows(vectors, mean) @ concepts.T, dtype=np.float32)


def positive_share(
    regions: npt.ArrayLike,
    texts: npt.ArrayLike,
    region_mean: npt.ArrayLike,
    text_mean: npt.ArrayLike,
) -> float:
    """Share of centred cosines above zero, over all regions and concepts.

    A sound encoder gives 0.2 to 0.8; outside, its image and text sides are not aligned and presence
    says little (near 0 everything is clipped, near 1 nothing is).
    """
    vectors = np.asarray(regions)
    positive = total = 0
    for start in range(0, len(vectors), _ROWS_PER_CHUNK):
        cosines = region_cosines(
            vectors[start : start + _ROWS_PER_CHUNK], texts, region_mean, text_mean
        )
        positive += int(np.count_nonzero(cosines > 0))
        total += cosines.size
    return positive / total if total else 0.0


def centred_directions(texts: npt.ArrayLike, text_mean: npt.ArrayLike) -> Floats:
    """Unit vectors along ``t_j - tau``, float32 ``[m, D]``; a text equal to tau gives zeros.

    Raises:
        ValueError: shapes that do not fit or values that are not finite.
    """
    matrix, mean = np.asarray(texts), np.asarray(text_mean, dtype=np.float32)
    if matrix.ndim != 2 or mean.shape != matrix.shape[1:]:
        raise ValueError(f"texts {matrix.shape} and their mean {mean.shape} do not fit")
    if not (np.isfinite(matrix).all() and np.isfinite(mean).all()):
        raise ValueError("text embeddings hold values that are not finite")
    return _unit_rows(matrix, mean)


def _unit_rows(rows: npt.NDArray[np.generic], mean: Floats) -> Floats:
    centred = rows.astype(np.float32) - mean
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.asarray(centred / np.maximum(norms, _SMALLEST_NORM), dtype=np.float32)


def _checked_offsets(offsets: npt.ArrayLike) -> Ints:
    starts = np.asarray(offsets)
    if starts.ndim != 1 or len(starts) < 1 or not np.issubdtype(starts.dtype, np.integer):
        raise ValueError("offsets must be a vector of integers")
    starts = starts.astype(np.int64)
    if starts[0] != 0 or (np.diff(starts) < 1).any():
        raise ValueError("offsets must start at 0 and every image needs at least one region")
    return starts


def _checked_regions(
    regions: npt.ArrayLike, region_mean: npt.ArrayLike, width: int, rows: int
) -> tuple[npt.NDArray[np.generic], Floats]:
    vectors, mean = np.asarray(regions), np.asarray(region_mean, dtype=np.float32)
    if vectors.shape != (rows, width) or mean.shape != (width,):
        raise ValueError(
            f"regions {vectors.shape} or their mean {mean.shape} are not [{rows}, {width}]"
        )
    if not (np.isfinite(vectors).all() and np.isfinite(mean).all()):
        raise ValueError("region embeddings hold values that are not finite")
    return vectors, mean


def _image_chunks(starts: Ints) -> Iterator[tuple[int, int]]:
    """Ranges of images whose regions fit one chunk (an image is never split)."""
    first, images = 0, len(starts) - 1
    while first < images:
        last = int(np.searchsorted(starts, starts[first] + _ROWS_PER_CHUNK, side="right")) - 1
        last = min(max(last, first + 1), images)
        yield first, last
        first = last


def _cosines(
    regions: npt.ArrayLike,
    offsets: npt.ArrayLike,
    texts: npt.ArrayLike,
    region_mean: npt.ArrayLike,
    text_mean: npt.ArrayLike,
) -> tuple[Ints, Floats, Iterator[tuple[int, int, Floats, Ints]]]:
    """Checked offsets, directions of the concepts, and by chunk: first and last image, cosines
    ``[R, m]`` and the offsets in the chunk.
    """
    starts = _checked_offsets(offsets)
    concepts = centred_directions(texts, text_mean)
    vectors, mean = _checked_regions(regions, region_mean, concepts.shape[1], int(starts[-1]))

    def chunks() -> Iterator[tuple[int, int, Floats, Ints]]:
        for first, last in _image_chunks(starts):
            cosines = _unit_rows(vectors[starts[first] : starts[last]], mean) @ concepts.T
            yield first, last, cosines, starts[first : last + 1] - starts[first]

    return starts, concepts, chunks()


def _deciding(cosines: Floats, largest: Floats, starts: Ints) -> npt.NDArray[np.int32]:
    """Which region ``[n, m]`` of each image has the largest cosine, the first one on a tie."""
    counts = np.diff(starts)
    row_in_image = (np.arange(starts[-1]) - np.repeat(starts[:-1], counts)).astype(np.int32)
    candidate = np.where(
        cosines == np.repeat(largest, counts, axis=0), row_in_image[:, None], np.iinfo(np.int32).max
    )
    return np.asarray(np.minimum.reduceat(candidate, starts[:-1], axis=0), np.int32)
