"""The linear-head recipe: a classifier on a backbone's features, with cross-fitted logits.

The head is a safetensors file `weight` [K, D], `bias` [K], `crossfit_digests` uint8 [n, 32] (the
raw SHA-256 of the items it was trained on) and `crossfit_logits` [n, K], float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from stillhouse.common.v1 import items_pb2
from stillhouse.student.v1 import student_pb2

from services.common.blobs import BlobStore, check_digest
from services.common.errors import InvalidInput
from services.common.tensors import pack_arrays
from services.student.artefacts import Card, to_json
from services.student.data import Labels, read_manifest, read_rows
from services.student.heads import Head, fit_head
from services.student.metrics import Undefined, agreement, bootstrap_counts, mean_estimate
from services.student.recipes import Arrays, Training


@dataclass(frozen=True)
class _Features:
    """Labelled items with features [n, D] float32."""

    labels: Labels
    values: npt.NDArray[np.float32]


def fit_linear_head(
    training: Training, recipe: student_pb2.LinearHeadRecipe
) -> student_pb2.LinearHeadResult:
    """Fit on train and val, report accuracy out of fold and on test, store head and card."""
    training.progress("reading features", 0, 0)
    data = _read(training, recipe)
    known = data.labels.rows("train", "val")
    labels = data.labels.take(known)
    seen = labels.hot.any(axis=1) | labels.multi_label
    if not seen.any():
        raise InvalidInput("data.manifest: train and val hold no labelled item", field="manifest")

    def fit() -> Arrays:
        try:
            head = fit_head(
                data.values[known],
                labels.hot,
                multi_label=labels.multi_label,
                seed=recipe.seed,
                progress=lambda done, total: training.progress("fitting the head", done, total),
            )
        except ValueError as error:
            raise InvalidInput(f"head: {error}", field="data") from None
        return {
            "weight": head.weight,
            "bias": head.bias,
            "crossfit": head.crossfit,
            "scores": np.array([head.l2, head.crossfit_accuracy]),
        }

    arrays = training.phase("head", fit)
    l2, accuracy = (float(one) for one in arrays["scores"])
    head = Head(arrays["weight"], arrays["bias"], arrays["crossfit"], l2, accuracy)
    card = _card(recipe, data, labels, head)
    return student_pb2.LinearHeadResult(
        head=put(training.blobs, training.project, _pack(head, labels)),
        card=put(training.blobs, training.project, to_json(card)),
    )


def put(blobs: BlobStore, project: str, data: bytes) -> items_pb2.BlobRef:
    """Store bytes and return their reference with the size."""
    return items_pb2.BlobRef(digest=blobs.put(project, data), size_bytes=len(data))


def _read(training: Training, recipe: student_pb2.LinearHeadRecipe) -> _Features:
    labels = read_manifest(training.blobs, training.project, recipe.data.manifest)
    refs, items = recipe.data.feature_shards, len(labels.digests)
    rows, valid = read_rows(training.blobs, training.project, refs, "features", (items, None))
    keep = np.flatnonzero(valid)
    return _Features(labels.take(keep), rows[keep].astype(np.float32))


def _pack(head: Head, labels: Labels) -> bytes:
    raw = b"".join(bytes.fromhex(check_digest(one, field="manifest")) for one in labels.digests)
    return pack_arrays(
        {
            "weight": head.weight,
            "bias": head.bias,
            "crossfit_digests": np.frombuffer(raw, np.uint8).reshape(-1, 32),
            "crossfit_logits": head.crossfit,
        }
    )


def _card(
    recipe: student_pb2.LinearHeadRecipe, data: _Features, labels: Labels, head: Head
) -> Card:
    test = data.labels.rows("test")
    logits = data.values[test].astype(np.float64) @ head.weight.T.astype(np.float64) + head.bias
    hot = data.labels.hot[test]
    return {
        "kind": "linear_head",
        "classes": list(labels.classes),
        "single_label": not labels.multi_label,
        "backbone": recipe.backbone,
        "backbone_digest": recipe.backbone_digest,
        "feature_dim": int(head.weight.shape[1]),
        "seed": recipe.seed,
        "l2": head.l2,
        "data": {
            "manifest": recipe.data.manifest.digest,
            "feature_shards": [ref.digest for ref in recipe.data.feature_shards],
        },
        "n_train": len(labels.rows("train")),
        "n_val": len(labels.rows("val")),
        "n_test": len(test),
        "cross_validated_accuracy": _accuracy(head.crossfit, labels.hot, labels.multi_label),
        "test_accuracy": _accuracy(logits, hot, labels.multi_label),
    }


def _accuracy(
    logits: npt.NDArray[np.floating], hot: npt.NDArray[np.bool_], multi_label: bool
) -> dict[str, float] | None:
    """Share of right labels with interval; None where there are no items."""
    right = (
        ((logits > 0) == hot).mean(axis=1)
        if multi_label
        else agreement(logits.argmax(axis=1), hot.argmax(axis=1))
    )
    try:
        return mean_estimate(right.astype(np.float64), bootstrap_counts(len(right))).as_dict()
    except Undefined:
        return None
