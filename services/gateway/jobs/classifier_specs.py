"""What a classifier job's specification must be, and what its empty fields stand for."""

from __future__ import annotations

import math
import re

from stillhouse.gateway.v1 import jobs_pb2 as pb
from stillhouse.student.v1 import student_pb2

from services.common import names
from services.common.augmentation import Augmentation, read_augmentation
from services.common.errors import InvalidInput
from services.gateway.jobs.checks import owned
from services.gateway.jobs.language_specs import check_bounds, check_model_id

OWN_ARM = "soft_hard"
ALONE, SOFT = "alone", "soft"
DEFAULT_VIEWS = Augmentation("flip_crop", views=4)
_DEFAULT_EPOCHS = 30.0
_DEFAULT_BATCH = 64
_SMALLEST_PX, _LARGEST_PX = 16, 2048
_MAX_STEPS = 10_000_000
_ARCHITECTURE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_TRAINING: dict[str, tuple[float, float]] = {
    "max_steps": (0, _MAX_STEPS),
    "epochs": (0, 100_000),
    "batch_images": (0, 65_536),
    "learning_rate": (0, 10),
    "warmup_share": (0, 1),
    "weight_decay": (0, 10),
    "temperature": (0, 1000),
    "soft_weight": (0, 1),
    "feature_weight": (0, 1000),
    "patience": (0, _MAX_STEPS),
    "checkpoint_steps": (0, _MAX_STEPS),
}


def check_classifier_spec(project: str, spec: pb.ClassifierJobSpec) -> None:
    """Raise InvalidInput for what is malformed or reaches into another project."""
    owned(project, spec.dataset, "datasets", "dataset")
    owned(project, spec.teacher, "models", "teacher")
    check_model_id(model_id_of(spec), spec.teacher)
    _check_network(spec)
    augmentation_of(spec)
    check_bounds(spec, {"training_seeds": (0, 32)})
    check_bounds(spec.training, _TRAINING, "training.")
    if spec.training.batch_images == 1:
        raise InvalidInput(
            "training.batch_images: batch norms need 2 images or more",
            field="training.batch_images",
        )
    if spec.training.precision not in ("", "float32", "bfloat16"):
        raise InvalidInput(
            "training.precision: float32, bfloat16 or empty", field="training.precision"
        )


def model_id_of(spec: pb.ClassifierJobSpec) -> str:
    """Return the last part of the new model's name."""
    return spec.model_id or f"{names.parse(spec.dataset, 'datasets')[1][:52]}-classifier"


def augmentation_of(spec: pb.ClassifierJobSpec) -> Augmentation:
    """Return the views to train on. Raises InvalidInput."""
    return read_augmentation(spec.augmentation) if spec.HasField("augmentation") else DEFAULT_VIEWS


def arms_of(spec: pb.ClassifierJobSpec) -> list[str]:
    """Return the arms to train, the job's own first; `soft` is left out where it is the same."""
    if not spec.controls:
        return [OWN_ARM]
    same = spec.training.soft_weight == 1 and not spec.training.feature_weight
    return [OWN_ARM, ALONE] if same else [OWN_ARM, ALONE, SOFT]


def steps_of(training: student_pb2.ClassifierTraining, images: int) -> int:
    """Return the optimizer steps of every arm over so many training images."""
    if training.max_steps:
        return training.max_steps
    epochs, batch = training.epochs or _DEFAULT_EPOCHS, batch_of(training)
    return max(1, math.ceil(epochs * images / batch))


def batch_of(training: student_pb2.ClassifierTraining) -> int:
    """Return the images of a step."""
    return training.batch_images or _DEFAULT_BATCH


def _check_network(spec: pb.ClassifierJobSpec) -> None:
    if not spec.architecture and not spec.weights:
        raise InvalidInput("architecture: it or weights is required", field="architecture")
    if spec.architecture and not _ARCHITECTURE.fullmatch(spec.architecture):
        raise InvalidInput("architecture: timm's name of one, or small-cnn", field="architecture")
    if spec.weights:
        names.check_id(spec.weights, field="weights")
    if spec.input_size and not _SMALLEST_PX <= spec.input_size <= _LARGEST_PX:
        raise InvalidInput(
            f"input_size: must be from {_SMALLEST_PX} to {_LARGEST_PX} pixels", field="input_size"
        )
