"""How a classifier is trained: the request's numbers with their defaults, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass

from stillhouse.student.v1 import student_pb2

from services.common.augmentation import Augmentation, read_augmentation
from services.common.blobs import check_digest
from services.common.errors import InvalidInput
from services.student.classifier.losses import LossOptions

MAX_STEPS = 10_000_000
SMALLEST_PX, LARGEST_PX = 16, 2048


@dataclass(frozen=True)
class ClassifierOptions:
    """Everything that decides how the weights change, beside data and first weights."""

    augmentation: Augmentation
    max_steps: int
    """0 means by `epochs`."""
    epochs: float
    batch_images: int
    learning_rate: float
    warmup_share: float
    weight_decay: float
    temperature: float
    soft_weight: float
    """0 where labels alone teach."""
    feature_weight: float
    precision: str
    seed: int
    patience: int
    """0 means never stop early."""
    checkpoint_steps: int
    """0 means a tenth of the steps."""

    def steps(self, images: int) -> int:
        """Optimizer steps over so many training images."""
        return self.max_steps or max(1, math.ceil(self.epochs * images / self.batch_images))

    def checkpoint_every(self, steps: int) -> int:
        """Steps between checkpoints and evaluations."""
        return self.checkpoint_steps or max(1, math.ceil(steps / 10))

    def loss(self, *, multi_label: bool) -> LossOptions:
        """The weights of the loss's parts."""
        return LossOptions(self.soft_weight, self.temperature, multi_label, self.feature_weight)


def read_options(recipe: student_pb2.ClassifierRecipe) -> ClassifierOptions:
    """The options of a recipe. Raises InvalidInput that names every field out of range."""
    message = recipe.training
    _check_ranges(message)
    views = Augmentation()
    if recipe.HasField("augmentation"):
        views = read_augmentation(recipe.augmentation)
    hard_only = recipe.hard_only
    return ClassifierOptions(
        augmentation=views,
        max_steps=message.max_steps,
        epochs=message.epochs or 30.0,
        batch_images=message.batch_images or 64,
        learning_rate=message.learning_rate or 1e-3,
        warmup_share=message.warmup_share or 0.05,
        weight_decay=message.weight_decay,
        temperature=message.temperature or 4.0,
        soft_weight=0.0 if hard_only else message.soft_weight or 0.9,
        feature_weight=message.feature_weight,
        precision=message.precision,
        seed=message.seed & 0x7FFF_FFFF,
        patience=message.patience,
        checkpoint_steps=message.checkpoint_steps,
    )


def check_classifier(recipe: student_pb2.ClassifierRecipe) -> None:
    """Raise InvalidInput for what can be seen in the request alone."""
    options = read_options(recipe)
    check_digest(recipe.data.manifest.digest, field="data.manifest")
    for name, refs in (
        ("data.teacher_shards", recipe.data.teacher_shards),
        ("view_shards", recipe.view_shards),
    ):
        for ref in refs:
            check_digest(ref.digest, field=name)
    if not recipe.architecture and not recipe.weights:
        raise InvalidInput("architecture: it or weights is required", field="architecture")
    if recipe.input_size and not SMALLEST_PX <= recipe.input_size <= LARGEST_PX:
        raise InvalidInput(
            f"input_size: must be from {SMALLEST_PX} to {LARGEST_PX} pixels", field="input_size"
        )
    if not recipe.hard_only and not recipe.view_shards:
        raise InvalidInput(
            "view_shards: the teacher's outputs are required, or hard_only", field="view_shards"
        )
    if recipe.hard_only and options.feature_weight:
        raise InvalidInput(
            "training.feature_weight: hard_only learns nothing from the teacher",
            field="training.feature_weight",
        )


_RANGES: dict[str, tuple[float, float]] = {
    "max_steps": (0, MAX_STEPS),
    "epochs": (0, 100_000),
    "batch_images": (0, 65_536),
    "learning_rate": (0, 10),
    "warmup_share": (0, 1),
    "weight_decay": (0, 10),
    "temperature": (0, 1000),
    "soft_weight": (0, 1),
    "feature_weight": (0, 1000),
    "patience": (0, MAX_STEPS),
    "checkpoint_steps": (0, MAX_STEPS),
}


def _check_ranges(message: student_pb2.ClassifierTraining) -> None:
    wrong = [
        (f"training.{name}", f"must be from {low:g} to {high:g}")
        for name, (low, high) in _RANGES.items()
        # NaN compares false, so it lies outside too.
        if not low <= getattr(message, name) <= high
    ]
    if message.batch_images == 1:
        wrong.append(("training.batch_images", "batch norms need 2 images or more"))
    if message.precision not in ("", "float32", "bfloat16"):
        wrong.append(("training.precision", "must be float32, bfloat16 or empty"))
    if wrong:
        text = "; ".join(f"{field}: {why}" for field, why in wrong)
        raise InvalidInput(text, violations=wrong)
