"""The arms of a classifier job: what each learns from, all with the same steps, views and seeds.

`soft_hard` is the job's own: the teacher's outputs and labels. Its controls are `alone`, labels
alone, and `soft`, the teacher's outputs alone.
"""

from __future__ import annotations

from typing import TypedDict

from stillhouse.common.v1 import items_pb2
from stillhouse.gateway.v1 import jobs_pb2 as pb
from stillhouse.student.v1 import student_pb2

from services.gateway.jobs.classifier_specs import ALONE, SOFT, augmentation_of
from services.gateway.jobs.plans import ClassifierPlan
from services.gateway.jobs.shard_stage import Shards


class Run(TypedDict):
    """One training run: its arm, the number of its seed, and digests of what it made by name."""

    arm: str
    seed: int
    blobs: dict[str, str]


class Fitted(TypedDict):
    """All runs, that of the job's model first, and the steps of each."""

    runs: list[Run]
    steps: int


def arm_recipe(
    spec: pb.ClassifierJobSpec,
    plan: ClassifierPlan,
    views: Shards,
    arm: str,
    seed: int,
    steps: int,
) -> student_pb2.ClassifierRecipe:
    """Return the recipe of one arm with one seed: digests and settings alone, so that the same
    inputs give the same one.

    Every arm gets the views' shards, so that all leave out the images that the teacher could not
    read.
    """
    augmentation = augmentation_of(spec)
    return student_pb2.ClassifierRecipe(
        data=student_pb2.TrainingData(manifest=_blob(plan["dataset"]["manifest"])),
        view_shards=[_blob(digest) for digest in views["digests"]],
        augmentation=items_pb2.Augmentation(
            policy=augmentation.policy, views=augmentation.views, seed=augmentation.seed
        ),
        architecture=spec.architecture,
        weights=spec.weights,
        input_size=spec.input_size,
        training=arm_training(spec, arm, seed, steps),
        hard_only=arm == ALONE,
        provenance={
            "kind": "classifier",
            "arm": arm,
            "dataset": plan["dataset"]["name"],
            "dataset_digest": plan["dataset"]["manifest"],
            "teacher": plan["teacher"]["name"],
            "teacher_digest": plan["teacher"]["digest"],
        },
    )


def arm_training(
    spec: pb.ClassifierJobSpec, arm: str, seed: int, steps: int
) -> student_pb2.ClassifierTraining:
    """Return how one arm is trained with one seed."""
    training = student_pb2.ClassifierTraining()
    training.CopyFrom(spec.training)
    training.max_steps = steps
    training.seed = (spec.training.seed + seed) & 0x7FFF_FFFF
    if spec.controls:
        training.patience = 0  # an arm that stops early would get fewer steps than the others
    if arm in (ALONE, SOFT):
        training.feature_weight = 0
    if arm == SOFT:
        training.soft_weight = 1
    return training


def _blob(digest: str) -> items_pb2.BlobRef:
    return items_pb2.BlobRef(digest=digest)
