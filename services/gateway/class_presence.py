"""How present concepts are in the images of each class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from stillhouse.gateway.v1 import students_pb2 as pb

from services.common.manifest import Manifest
from services.common.presence import Floats
from services.common.tensors import Array

SEEN = ("train", "val")
"""Splits that may be looked at while a student is tuned."""
_NOTHING = 0.5


def seen_items(manifest: Manifest, valid: Array) -> Array:
    """Row numbers of the items of train and val that have regions, from valid bool [n]."""
    return np.flatnonzero([item.split in SEEN for item in manifest.items] & valid)


def class_marks(manifest: Manifest, classes: Sequence[str]) -> Array:
    """Labels bool [n, K] of a manifest's items in the order of a student's classes."""
    hot = np.zeros((len(manifest.items), len(manifest.classes)), bool)
    for row, item in enumerate(manifest.items):
        hot[row, list(item.labels)] = True
    unknown = np.zeros(len(hot), bool)
    columns = [
        hot[:, manifest.classes.index(name)] if name in manifest.classes else unknown
        for name in classes
    ]
    return np.stack(columns, axis=1) if columns else np.zeros((len(hot), 0), bool)


def class_presences(values: Floats, marks: Array, classes: Sequence[str]) -> list[pb.ClassPresence]:
    """Mean presence and AUC per class, of one concept's presence [n] and labels bool [n, K].

    A class without images has the mean 0; where a class holds no image or all of them there is
    no pair to rank, and the AUC is 0.5.
    """
    ranks = _mid_ranks(values)
    return [
        pb.ClassPresence(
            label=label,
            mean_presence=float(values[own].mean(dtype=np.float64)) if own.any() else 0.0,
            auc=_auc(ranks, own),
        )
        for label, own in zip(classes, marks.T, strict=True)
    ]


def _mid_ranks(values: Floats) -> Array:
    """Ranks [n] from 1; equal values share the middle of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    middles = np.cumsum(counts) - (counts - 1) / 2
    return np.asarray(middles[place], np.float64)


def _auc(ranks: Array, own: Array) -> float:
    """Share of pairs (one of `own`, one of the others) in the right order; a tie counts half."""
    mine = int(own.sum())
    pairs = mine * (len(own) - mine)
    if not pairs:
        return _NOTHING
    return float((ranks[own].sum() - mine * (mine + 1) / 2) / pairs)
