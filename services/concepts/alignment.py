"""Align an image trunk with a text tower in closed form, without images.

A classifier's weight matrix holds one vector per class in the space of the trunk's pooled features,
and each class has a name; a linear map between the two spaces makes an open_clip model of a
classifier and a sentence encoder. The map is the bilinear ridge solution of Romera-Paredes and Torr
(ICML 2015),

    H = (T'T + text_ridge I)^-1  T'V  (V'V + feature_ridge I)^-1,

with V the centred class vectors and T the centred, unit text embeddings of the names.
``text_ridge`` large and it is plain ridge regression from image to text; small and directions of
the text space that few names use count as much as the others, which keeps attributes apart from
things.

Attributes (red, striped, netted, round) are nearly absent among ImageNet's names, so rows of their
own ground them: discriminant directions of rendered scenes, each with the phrases it stands for
(`attributes`). All of it runs in float64 and depends on its inputs alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]

TEXT_RIDGE = 3.0
FEATURE_RIDGE = 300.0
ATTRIBUTE_WEIGHT = 3.0


@dataclass(frozen=True)
class Head:
    """A linear map from trunk features to the text space: ``features @ weight.T + bias``.

    Attributes:
        weight: float32 ``[D, F]``, laid out as ``torch.nn.Linear.weight``.
        bias: float32 ``[D]``; places the mean of typical features at the origin.
    """

    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Rows:
    """Pairs of a direction among trunk features and a text embedding it should land on.

    Attributes:
        vectors: ``[n, F]``.
        texts: ``[n, D]``, one for each vector.
    """

    vectors: Doubles
    texts: Doubles


def fit_head(
    classes: Rows,
    attributes: Rows | None = None,
    *,
    feature_mean: npt.ArrayLike | None = None,
    text_ridge: float = TEXT_RIDGE,
    feature_ridge: float = FEATURE_RIDGE,
    attribute_weight: float = ATTRIBUTE_WEIGHT,
) -> Head:
    """The closed-form head.

    Args:
        classes: classifier rows and text embeddings of the class names, in the same order.
        attributes: further rows as `attributes.rows` makes them: contrasts of typical length one
            with unit texts, not centred again; their vectors are scaled to the median length of the
            class vectors.
        feature_mean: ``[F]``, mean pooled feature of typical images; the bias sends it to the
            origin, so that cosines of unit rows compare what differs between images. None: no bias.
        text_ridge, feature_ridge: the two penalties, above zero.
        attribute_weight: of attribute rows against class rows.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, a penalty that is not
            positive.
    """
    if text_ridge <= 0 or feature_ridge <= 0:
        raise ValueError("both ridge penalties must be above zero")
    vectors, texts = _centred(_checked(classes))
    if attributes is not None:
        extra_vectors, extra_texts = _weighted(_checked(attributes), vectors, attribute_weight)
        vectors = np.concatenate([vectors, extra_vectors])
        texts = np.concatenate([texts, extra_texts])
    text_gram = texts.T @ texts + text_ridge * np.eye(texts.shape[1])
    feature_gram = vectors.T @ vectors + feature_ridge * np.eye(vectors.shape[1])
    half = np.linalg.solve(text_gram, texts.T @ vectors)
    weight = np.linalg.solve(feature_gram, half.T).T
    return _head(weight, feature_mean)


def _head(weight: Doubles, feature_mean: npt.ArrayLike | None) -> Head:
    # An encoder's rows are normalised, so the scale is free; unit rows on average keep float16
    # comfortable.
    weight = weight / np.linalg.norm(weight, axis=1).mean()
    mean = (
        np.zeros(weight.shape[1]) if feature_mean is None else np.asarray(feature_mean, np.float64)
    )
    if mean.shape != weight.shape[1:] or not np.isfinite(mean).all():
        raise ValueError(f"the mean feature {mean.shape} does not fit {weight.shape[1]} features")
    return Head(weight.astype(np.float32), (-weight @ mean).astype(np.float32))


def _checked(rows: Rows) -> Rows:
    vectors, texts = np.asarray(rows.vectors, np.float64), np.asarray(rows.texts, np.float64)
    if vectors.ndim != 2 or texts.ndim != 2 or len(vectors) != len(texts) or len(vectors) < 2:
        raise ValueError(
            f"vectors {vectors.shape} and texts {texts.shape} are not two or more pairs"
        )
    if not (np.isfinite(vectors).all() and np.isfinite(texts).all()):
        raise ValueError("vectors and texts must be finite")
    return Rows(vectors, texts)


def _centred(rows: Rows) -> tuple[Doubles, Doubles]:
    return rows.vectors - rows.vectors.mean(axis=0), _unit(rows.texts - rows.texts.mean(axis=0))


def _weighted(rows: Rows, class_vectors: Doubles, weight: float) -> tuple[Doubles, Doubles]:
    typical = float(np.median(np.linalg.norm(class_vectors, axis=1)))
    return weight * typical * rows.vectors, weight * rows.texts


def _unit(rows: Doubles) -> Doubles:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12))
