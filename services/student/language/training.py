"""Trains a language model on planned sequences: the loss of a step, and what is told of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from services.student.language.course import Course, Progress, Since
from services.student.language.data import Batch, by_length, collate
from services.student.language.options import TrainingOptions
from services.student.language.states import guided_loss
from services.student.recipes import Training
from services.student.sharding import Shared
from services.student.training_loop import Loop, Point, check_finite
from services.torch_common.language.packing import PackedSequence

CLIP_NORM = 1.0


def fit(
    model: Any, course: Course, options: TrainingOptions, training: Training, *, dtype: torch.dtype
) -> tuple[Any, Progress]:
    """Train the tensors of `model` that require gradients, resuming where a worker left.

    Returns the trained model, which is the one given where no other rank takes part, and has no
    weights on ranks but the first. Computes in `dtype` under autocast. Raises Precondition where
    the loss is not finite, Fenced where another worker has taken over.
    """
    shared = Shared(model, training.ranks, _layers_of(model))
    progress = _LanguageLoop(shared.module, course, options, training, dtype).fit()
    return shared.whole(), progress


class _LanguageLoop(Loop[Progress]):
    """Steps of sequences, each rank on its share of them."""

    options: TrainingOptions

    def __init__(
        self,
        model: Any,
        course: Course,
        options: TrainingOptions,
        training: Training,
        dtype: torch.dtype,
    ) -> None:
        self.course, self.forward_dtype = course, dtype
        self._since, self._rate = Since(), 0.0
        steps, batch = course.steps.shape
        super().__init__(
            model,
            Progress(),
            options,
            training,
            steps=steps,
            data=[course.sequences[int(at)] for at in course.steps.ravel()],
            batch=batch,
            clip_norm=CLIP_NORM,
        )

    @property
    def evaluates(self) -> bool:
        """Whether there are held-out sequences."""
        return self.course.heldout is not None

    def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Tensor:
        """This rank's part of the loss of one step's sequences, a mean over their target tokens;
        the mean of the parts is the loss."""
        course, sequences = self.course, by_length(inputs["items"])
        if course.teach is not None:
            sequences = course.teach.sequences(model, sequences, int(self.state.global_step))
        batch, part = self._batch(sequences)
        batch = batch.to(self.args.device)
        settings = self.options.loss, course.kind
        loss = guided_loss(
            model,
            batch,
            course.guide,
            *settings,
            dtype=self.forward_dtype,
            whole=lambda means: self.ranks.mean(means, part),
        )
        if not self.ranks.alone:
            loss = loss * part
        self._rate = self.learning_rate_now()
        self._since.add(loss / self.ranks.world, batch.token_count if part else 0)
        return loss

    def _batch(self, sequences: Sequence[PackedSequence]) -> tuple[Batch, float]:
        """This rank's batch, and what its mean counts for beside the other ranks' means."""
        mine, counts = self.ranks.share(sequences)
        if not self.ranks.alone:
            # Longest first: one forward pass, as on all other ranks, which wait for one another.
            mine = list(reversed(mine))
        teach = self.course.teach
        batch = collate(mine, self.course.bank if teach is None else teach.targets(mine))
        whole = sum(one.target_count for one in sequences)
        return batch, self.ranks.world * batch.token_count / whole if counts else 0.0

    def point(self, step: int) -> Point:
        """Mean loss, rate and speed; raises Precondition where the loss is no number."""
        own, tokens, seconds = self._since.take()
        loss, count = self.ranks.total([own, tokens])
        check_finite(loss, f"the loss at step {step}")
        self.progress.tokens += int(count)
        self.progress.seconds += seconds
        speed = count / max(seconds, 1e-9)
        return {"step": step, "loss": loss, "learning_rate": self._rate, "tokens_per_s": speed}

    def restart_clock(self) -> None:
        """Count seconds from now."""
        self._since.restart()

    def measure(self, point: Point) -> bool:
        """Evaluate on the held-out sequences."""
        assert self.course.heldout is not None
        found = self.ranks.agreed(self.course.heldout(self.trained))
        point["heldout_cross_entropy"] = found
        better = found < self.progress.best
        self.progress.best = min(found, self.progress.best)
        return better


def _layers_of(model: Any) -> Sequence[nn.Module]:
    """A model's layers, also below peft's wrapping; none where it has them in another way."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return getattr(inner.get_decoder(), "layers", ())
