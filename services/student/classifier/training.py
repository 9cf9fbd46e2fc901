"""Trains a classifier on planned views: the loss of a step, and what is told of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from services.student.classifier.course import Course, HeldOut, Network, Progress, Since
from services.student.classifier.data import Batch
from services.student.classifier.losses import (
    Losses,
    LossOptions,
    distillation_losses,
    feature_distance,
)
from services.student.classifier.networks import Trained
from services.student.classifier.options import ClassifierOptions
from services.student.classifier.prefetch import Prefetch
from services.student.recipes import Training
from services.student.sharding import Shared
from services.student.training_loop import Loop, Point, check_finite

CLIP_NORM = 5.0


def fit(
    model: Trained,
    course: Course,
    options: ClassifierOptions,
    loss: LossOptions,
    training: Training,
    *,
    dtype: torch.dtype,
) -> tuple[Trained, Progress]:
    """Train `model`, resuming where a worker left.

    Returns the trained model in eval mode, which is the one given where no other rank takes part,
    and has no weights on ranks but the first. Computes in `dtype` under autocast. Raises
    Precondition where the loss is not finite, Fenced where another worker has taken over, and what
    reading a batch raises.
    """
    shared = Shared(model, training.ranks)
    with Prefetch(course.batch, course.steps) as batches:
        progress = _ClassifierLoop(
            shared.module, course, options, loss, training, dtype, batches
        ).fit()
    return shared.whole(), progress


class _ClassifierLoop(Loop[Progress]):
    """Steps of images, which threads prepare, each rank's share of them."""

    options: ClassifierOptions

    def __init__(
        self,
        model: Trained,
        course: Course,
        options: ClassifierOptions,
        loss: LossOptions,
        training: Training,
        dtype: torch.dtype,
        batches: Prefetch[Batch],
    ) -> None:
        self.course, self.loss, self.forward_dtype, self.batches = course, loss, dtype, batches
        self._since, self._rate = Since(), 0.0
        super().__init__(
            model,
            Progress(),
            options,
            training,
            steps=course.steps,
            # The batches themselves come from `batches`: skipping to a checkpoint decodes nothing.
            data=range(course.steps),
            batch=1,
            clip_norm=CLIP_NORM,
        )

    @property
    def evaluates(self) -> bool:
        """Whether there are images in `val`."""
        return self.course.heldout is not None

    def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Tensor:
        """This rank's part of the loss of one step's images; the mean of the parts is the loss."""
        batch = self.batches.take(int(self.state.global_step))
        found = self._losses(model, batch)
        self._rate = self.learning_rate_now()
        world = self.ranks.world
        self._since.add(found, len(batch.hot) if batch.part else 0, part=batch.part / world)
        return found.total if self.ranks.alone else found.total * batch.part

    def _losses(self, model: Any, batch: Batch) -> Losses:
        images = self.course.images(batch)
        device, half = images.device, self.forward_dtype
        with torch.autocast(device.type, dtype=half, enabled=half != torch.float32):
            logits, features = model(images)
        feature = None
        if features is not None and batch.features is not None:
            projection = self.trained.projection
            feature = feature_distance(features.float(), batch.features.to(device), projection)
        teacher = None if batch.teacher is None else batch.teacher.to(device)
        return distillation_losses(self.loss, logits, batch.hot.to(device), teacher, feature)

    def point(self, step: int) -> Point:
        """Mean losses, rate and speed; raises Precondition where the loss is no number."""
        losses, images, seconds = self._since.take()
        *means, count = self.ranks.total([*losses.values(), images])
        losses = dict(zip(losses, means, strict=True))
        check_finite(losses["loss"], f"the loss at step {step}")
        self.progress.images += int(count)
        self.progress.seconds += seconds
        speed = count / max(seconds, 1e-9)
        return {"step": step, **losses, "learning_rate": self._rate, "images_per_s": speed}

    def restart_clock(self) -> None:
        """Count seconds from now."""
        self._since.restart()

    def measure(self, point: Point) -> bool:
        """Evaluate on `val`."""
        assert self.course.heldout is not None
        own = self.course.heldout(self._network())
        found = HeldOut(self.ranks.agreed(own.accuracy), self.ranks.agreed(own.cross_entropy))
        check_finite(found.cross_entropy, f"the cross-entropy on val after step {point['step']:g}")
        point["heldout_accuracy"] = found.accuracy
        point["heldout_cross_entropy"] = found.cross_entropy
        return self.progress.note(found)

    def _network(self) -> Network:
        """The student in training; shards are gathered by calling what was sharded."""
        if self.ranks.alone:
            return self.trained.student  # type: ignore[no-any-return]
        return lambda images: self.trained(images)[0]  # type: ignore[no-any-return]
