"""The JSON card beside a student's numbers: names, settings, and where everything came from."""

from __future__ import annotations

import numpy as np
from stillhouse.student.v1 import student_pb2

from services.student.artefacts import Card
from services.student.data import Doubles, Labels, Mask
from services.student.objective import Loss
from services.student.path import SparseFit


def class_means(columns: Doubles, hot: Mask) -> Doubles:
    """Mean standardised presence [K, M] over the items of each class; zeros where it has none."""
    counts = hot.sum(axis=0)[:, None]
    return np.asarray(hot.T.astype(np.float64) @ columns / np.maximum(counts, 1), np.float64)


def concept_card(
    recipe: student_pb2.ConceptRecipe, labels: Labels, loss: Loss, fit: SparseFit, means: Doubles
) -> Card:
    """The card of a fresh student; the digest of its weights is added when it is stored."""
    return {
        "kind": "concept_student",
        "classes": list(labels.classes),
        "concepts": list(recipe.concepts),
        "loss": loss,
        "nec": fit.nec,
        "lambda": fit.lam,
        "seed": recipe.seed,
        "whole_image_only": recipe.whole_image_only,
        "multi_label": labels.multi_label,
        "provenance": dict(recipe.provenance),
        "data": {
            "manifest": recipe.data.manifest.digest,
            "teacher_shards": [ref.digest for ref in recipe.data.teacher_shards],
            "region_shards": [ref.digest for ref in recipe.data.region_shards],
        },
        "concept_embeddings": recipe.concept_embeddings.digest,
        "class_mean_presence": np.round(means, 5).tolist(),
        "parent": None,
        "edits": [],
    }
