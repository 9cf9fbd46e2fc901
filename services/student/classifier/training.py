"""Trains a classifier on planned views with transformers' Trainer.

The Trainer keeps the loop, optimizer, schedule and devices; this module gives it the loss, batches
that threads prepare, and checkpoints from which a killed run goes on bit for bit.
"""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from services.common.errors import Precondition
from services.student.classifier import checkpoints
from services.student.classifier.course import Course, Point, Progress, Since
from services.student.classifier.data import Batch
from services.student.classifier.losses import LossOptions, distillation_losses, feature_distance
from services.student.classifier.networks import Trained
from services.student.classifier.options import ClassifierOptions
from services.student.classifier.prefetch import Prefetch
from services.student.recipes import Training

PHASE = "training"
CLIP_NORM = 5.0
POINTS = 100
"""Points of the learning curves at most, those of evaluations not counted."""


def fit(
    model: Trained,
    course: Course,
    options: ClassifierOptions,
    loss: LossOptions,
    training: Training,
    *,
    dtype: torch.dtype,
) -> Progress:
    """Train `model` in place, resuming where a worker left; it ends in eval mode.

    Computes in `dtype` under autocast. Raises Precondition where the loss is not finite, Fenced
    where another worker has taken over, and what reading a batch raises.
    """
    found = training.writer.newest_folder(PHASE)
    with Prefetch(course.batch, course.steps) as batches:
        trainer = _ClassifierTrainer(model, course, options, loss, training, dtype, batches)
        if found is not None:
            trainer.progress = replace(Progress(), **checkpoints.read_progress(found))
        if found is None or not trainer.finished:
            trainer.train(resume_from_checkpoint=None if found is None else str(found))
        else:
            checkpoints.load_module(found, model)
    trainer.restore_best(found)
    model.eval()
    return trainer.progress


class _ClassifierTrainer(Trainer):  # type: ignore[misc]
    """A Trainer with our loss, batches and checkpoints; its own logging and saving are off."""

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
        self.course, self.options, self.loss = course, options, loss
        self.run, self.forward_dtype, self.batches = training, dtype, batches
        self.trained = model
        super().__init__(
            model=model,
            args=_arguments(options, course.steps, training),
            # The batches themselves come from `batches`: skipping to a checkpoint decodes nothing.
            train_dataset=range(course.steps),
            data_collator=lambda steps: {"steps": steps},
            callbacks=[_AfterStep(self)],
        )
        self.remove_callback(PrinterCallback)
        self.progress = Progress()
        self._best: checkpoints.Weights | None = None
        self._since = Since()
        self._rate = 0.0

    @property
    def finished(self) -> bool:
        """Whether no step is left."""
        return self.progress.stopped_early or self.progress.step >= self.course.steps

    def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Tensor:
        """The mean loss of one step's images."""
        batch = self.batches.take(int(self.state.global_step))
        images = self.course.images(batch)
        device, half = images.device, self.forward_dtype
        with torch.autocast(device.type, dtype=half, enabled=half != torch.float32):
            logits, features = model(images)
        feature = None
        if features is not None and batch.features is not None:
            projection = self.trained.projection
            assert projection is not None
            told = batch.features.to(device)
            feature = feature_distance(features.float(), told, projection)
        teacher = None if batch.teacher is None else batch.teacher.to(device)
        found = distillation_losses(self.loss, logits, batch.hot.to(device), teacher, feature)
        self._rate = float(self._get_learning_rate())
        self._since.add(found, len(images))
        return found.total

    def after_step(self, control: Any) -> None:
        """Count the step; now and then tell, evaluate and keep a checkpoint."""
        step, total = int(self.state.global_step), self.course.steps
        self.progress.step = step
        due = step % self.options.checkpoint_every(total) == 0 or step == total
        if not due and step % max(1, total // POINTS):
            return
        point = self._point(step)
        if due:
            self._evaluate_now(point)
        self.progress.curves.append(point)
        if due:
            self.run.writer.save_folder(PHASE, step, self._save_all)
        if self.progress.stopped_early:
            control.should_training_stop = True
        told = {name: value for name, value in point.items() if name != "step"}
        self.run.progress("training", step, total, told)

    def restore_best(self, folder: Path | None) -> None:
        """Put the weights of the best evaluation back, where they were kept."""
        if not self.options.patience or self.progress.best_step == self.progress.step:
            return
        if self._best is None and folder is not None:
            self._best = checkpoints.load_best(folder)
        if self._best is not None:
            self.trained.load_state_dict(self._best)

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted."""
        return 0

    def _point(self, step: int) -> Point:
        losses, images, seconds = self._since.take()
        check_finite(losses["loss"], f"the loss at step {step}")
        self.progress.images += images
        self.progress.seconds += seconds
        speed = images / max(seconds, 1e-9)
        return {"step": step, **losses, "learning_rate": self._rate, "images_per_s": speed}

    def _evaluate_now(self, point: Point) -> None:
        if self.course.heldout is None:
            return
        self.trained.eval()
        found = self.course.heldout(self.trained.student)
        self._since.restart()
        check_finite(found.cross_entropy, f"the cross-entropy on val after step {point['step']:g}")
        point["heldout_accuracy"] = found.accuracy
        point["heldout_cross_entropy"] = found.cross_entropy
        if self.progress.note(found, self.options.patience) and self.options.patience:
            self._best = checkpoints.weights_of(self.trained)

    def _save_all(self, folder: Path) -> None:
        progress = asdict(self.progress)
        checkpoints.save(
            folder, self.trained, self._best, self.optimizer, self.lr_scheduler, progress
        )
        self.state.save_to_json(str(folder / "trainer_state.json"))

    # What the Trainer calls to resume, at the right moments of its own.

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        checkpoints.load_module(folder, self.trained)
        self._best = checkpoints.load_best(folder)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            checkpoints.load_steps(Path(checkpoint), self.optimizer, self.lr_scheduler)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            checkpoints.load_generators(Path(checkpoint))
            self._since.restart()

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return torch.utils.data.SequentialSampler(range(self.course.steps))


def check_finite(value: float, what: str) -> None:
    """Raise Precondition where training has gone astray."""
    if not math.isfinite(value):
        raise Precondition(
            f"{what} is {value}; use a lower learning_rate", differences={"loss": str(value)}
        )


class _AfterStep(TrainerCallback):  # type: ignore[misc]
    def __init__(self, trainer: _ClassifierTrainer) -> None:
        self._trainer = trainer

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        self._trainer.after_step(control)


def _arguments(options: ClassifierOptions, steps: int, training: Training) -> TrainingArguments:
    """The Trainer's settings: one pass over the planned steps, nothing saved or logged."""
    cpu = training.surroundings.device == "cpu"
    if not cpu:
        torch.cuda.set_device(torch.device(training.surroundings.device).index or 0)
        torch.backends.cudnn.deterministic = True
    arguments = TrainingArguments(
        output_dir=str(training.writer.run.path / "checkpoint"),
        max_steps=steps,
        per_device_train_batch_size=1,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(options.warmup_share * steps),
        max_grad_norm=CLIP_NORM,
        optim="adamw_torch_fused",
        seed=options.seed,
        use_cpu=cpu,
        save_strategy="no",
        logging_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # several devices are for torchrun, not for a run of one process
    return arguments
