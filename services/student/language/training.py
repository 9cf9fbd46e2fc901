"""Trains a language model on planned sequences with transformers' Trainer.

The Trainer keeps the loop, optimizer, schedule and devices; this module gives it the loss, the
order of the data, and checkpoints from which a killed run goes on bit for bit.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from services.common.errors import Precondition
from services.student.language import checkpoints
from services.student.language.course import Course, Point, Progress, Since
from services.student.language.data import by_length, collate
from services.student.language.options import TrainingOptions
from services.student.language.states import guided_loss
from services.student.recipes import Training

PHASE = "training"
CLIP_NORM = 1.0
POINTS = 100
"""Points of the learning curves at most, those of evaluations not counted."""


def fit(
    model: Any, course: Course, options: TrainingOptions, training: Training, *, dtype: torch.dtype
) -> Progress:
    """Train the tensors of `model` that require gradients, in place, resuming where a worker left.

    Computes in `dtype` under autocast. Raises Precondition where the loss is not finite, Fenced
    where another worker has taken over.
    """
    trainer = _LanguageTrainer(model, course, options, training, dtype)
    found = training.writer.newest_folder(PHASE)
    if found is not None:
        trainer.progress = _read_progress(found)
    if found is None or not trainer.finished:
        trainer.train(resume_from_checkpoint=None if found is None else str(found))
    else:
        checkpoints.load_weights(model, checkpoints.read_weights(found / "weights.safetensors"))
    trainer.restore_best(found)
    model.eval()
    return trainer.progress


class _LanguageTrainer(Trainer):  # type: ignore[misc]
    """A Trainer with our loss, order and checkpoints; its own logging and saving are off."""

    def __init__(
        self,
        model: Any,
        course: Course,
        options: TrainingOptions,
        training: Training,
        dtype: torch.dtype,
    ) -> None:
        self.course, self.options, self.run, self.forward_dtype = course, options, training, dtype
        self.student = model
        self.total, batch = course.steps.shape
        super().__init__(
            model=model,
            args=_arguments(options, self.total, batch, training),
            train_dataset=[course.sequences[int(i)] for i in course.steps.ravel()],
            data_collator=lambda sequences: {"sequences": sequences},
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
        return self.progress.stopped_early or self.progress.step >= self.total

    def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Tensor:
        """The loss of one step's sequences, a mean over their target tokens."""
        step = self.state.global_step
        if self.course.teach is None:
            batch = collate(by_length(inputs["sequences"]), self.course.bank)
        else:
            batch = self.course.teach(model, inputs["sequences"], step)
        batch = batch.to(self.args.device)
        settings = self.options.loss, self.course.kind
        loss = guided_loss(model, batch, self.course.guide, *settings, dtype=self.forward_dtype)
        self._rate = float(self._get_learning_rate())
        self._since.add(loss, batch.token_count)
        return loss

    def after_step(self, control: Any) -> None:
        """Count the step; now and then tell, evaluate and keep a checkpoint."""
        step = self.progress.step = int(self.state.global_step)
        every = self.options.checkpoint_every(self.total)
        due = step % every == 0 or step == self.total
        if not due and step % max(1, self.total // POINTS):
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
        self.run.progress("training", step, self.total, told)

    def restore_best(self, folder: Path | None) -> None:
        """Put the weights of the lowest held-out cross-entropy back, where they were kept."""
        if not self.options.patience or self.progress.best_step == self.progress.step:
            return
        if self._best is None and folder is not None and (folder / "best.safetensors").exists():
            self._best = checkpoints.read_weights(folder / "best.safetensors")
        if self._best is not None:
            checkpoints.load_weights(self.student, self._best)

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted."""
        return 0

    def _point(self, step: int) -> Point:
        loss, tokens, seconds = self._since.take()
        if not math.isfinite(loss):
            raise Precondition(
                f"the loss is {loss} at step {step}; use a lower learning_rate",
                differences={"loss": str(loss)},
            )
        self.progress.tokens += tokens
        self.progress.seconds += seconds
        speed = tokens / max(seconds, 1e-9)
        return {"step": step, "loss": loss, "learning_rate": self._rate, "tokens_per_s": speed}

    def _evaluate_now(self, point: Point) -> None:
        if self.course.heldout is None:
            return
        self.student.eval()
        found = point["heldout_cross_entropy"] = self.course.heldout(self.student)
        self._since.restart()
        progress, patience = self.progress, self.options.patience
        if found < progress.best:
            progress.best, progress.best_step, progress.without_gain = found, progress.step, 0
            if patience:
                weights = checkpoints.trained_weights(self.student)
                self._best = {name: weight.clone() for name, weight in weights.items()}
        else:
            progress.without_gain += 1
            progress.stopped_early = 0 < patience <= progress.without_gain

    def _save_all(self, folder: Path) -> None:
        weights = checkpoints.trained_weights(self.student)
        checkpoints.save_weights(folder / "weights.safetensors", weights)
        if self._best is not None:
            checkpoints.save_weights(folder / "best.safetensors", self._best)
        checkpoints.save_generators(folder / "rng.safetensors")
        rates = checkpoints.save_optimizer(folder / "optimizer.safetensors", self.optimizer)
        schedule = checkpoints.scheduler_state(self.lr_scheduler)
        state = {"progress": asdict(self.progress), "rates": rates, "schedule": schedule}
        (folder / "state.json").write_text(json.dumps(state))
        self.state.save_to_json(str(folder / "trainer_state.json"))

    # What the Trainer calls to resume, at the right moments of its own.

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        checkpoints.load_weights(
            self.student, checkpoints.read_weights(folder / "weights.safetensors")
        )
        if (folder / "best.safetensors").exists():
            self._best = checkpoints.read_weights(folder / "best.safetensors")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            folder = Path(checkpoint)
            state = json.loads((folder / "state.json").read_text())
            checkpoints.load_optimizer(
                folder / "optimizer.safetensors", self.optimizer, state["rates"]
            )
            checkpoints.load_scheduler(self.lr_scheduler, state["schedule"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            checkpoints.load_generators(Path(checkpoint) / "rng.safetensors")
            self._since.restart()

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return torch.utils.data.SequentialSampler(range(self.course.steps.size))


class _AfterStep(TrainerCallback):  # type: ignore[misc]
    def __init__(self, trainer: _LanguageTrainer) -> None:
        self._trainer = trainer

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        self._trainer.after_step(control)


def _arguments(
    options: TrainingOptions, steps: int, batch: int, training: Training
) -> TrainingArguments:
    """The Trainer's settings: one pass over the planned sequences, nothing saved or logged."""
    cpu = training.surroundings.device == "cpu"
    if not cpu:
        torch.cuda.set_device(torch.device(training.surroundings.device).index or 0)
    arguments = TrainingArguments(
        output_dir=str(training.writer.run.path / "checkpoint"),
        max_steps=steps,
        per_device_train_batch_size=batch,
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


def _read_progress(folder: Path) -> Progress:
    return replace(Progress(), **json.loads((folder / "state.json").read_text())["progress"])
