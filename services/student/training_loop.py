"""The loop of every training by gradient: transformers' Trainer with our checkpoints.

The Trainer keeps the loop, optimizer, schedule and devices. A kind of student adds its loss and
its measurements; here are the curves, early stops, and checkpoints from which a killed run goes on
bit for bit, or on another number of ranks.
"""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from services.common.errors import Precondition
from services.student import checkpoints
from services.student.recipes import Training
from services.student.sharding import fold

Point = dict[str, float]
PHASE = "training"
POINTS = 100
"""Points of the learning curves at most, those of evaluations not counted."""


@dataclass
class Progress:
    """What a training has counted so far; all of it is in a checkpoint."""

    step: int = 0
    seconds: float = 0.0
    curves: list[Point] = field(default_factory=list)
    best_step: int = 0
    without_gain: int = 0
    """Evaluations since the best one."""
    stopped_early: bool = False

    def count(self, *, better: bool, patience: int) -> None:
        """Count an evaluation; a patience of 0 never stops."""
        if better:
            self.best_step, self.without_gain = self.step, 0
        else:
            self.without_gain += 1
            self.stopped_early = 0 < patience <= self.without_gain


P = TypeVar("P", bound=Progress)


class LoopOptions(Protocol):
    """What the loop reads of a recipe's options."""

    @property
    def learning_rate(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def warmup_share(self) -> float: ...
    @property
    def seed(self) -> int: ...
    @property
    def patience(self) -> int: ...
    def checkpoint_every(self, steps: int) -> int:
        """Steps between checkpoints and evaluations."""


class Loop(Trainer, Generic[P]):  # type: ignore[misc]
    """A Trainer with our curves and checkpoints; its own logging and saving are off.

    What a subclass computes in `measure` and `point` must be the same on all ranks.
    """

    def __init__(
        self,
        module: Any,
        progress: P,
        options: LoopOptions,
        training: Training,
        *,
        steps: int,
        data: Sequence[Any],
        batch: int,
        clip_norm: float,
    ) -> None:
        """`data` are `steps` times `batch` items in order, which `compute_loss` gets as `items`."""
        self.trained, self.progress, self.options = module, progress, options
        self.run, self.ranks, self.steps = training, training.ranks, steps
        self._items = range(len(data))
        self._best: checkpoints.Weights | None = None
        super().__init__(
            model=module,
            args=_arguments(options, training, steps, batch, clip_norm),
            train_dataset=data,
            data_collator=lambda items: {"items": items},
            callbacks=[_AfterStep(self)],
        )
        self.remove_callback(PrinterCallback)
        if not self.ranks.first:  # another dropout than the first rank's
            torch.manual_seed(options.seed + self.ranks.rank)

    @abstractmethod
    def point(self, step: int) -> Point:
        """What the steps since the last point came to."""

    @abstractmethod
    def measure(self, point: Point) -> bool:
        """Evaluate, note it in the point; returns whether it was the best so far."""

    @abstractmethod
    def restart_clock(self) -> None:
        """Leave what came before, an evaluation or skipped steps, out of the speed."""

    @property
    def evaluates(self) -> bool:
        """Whether there is anything to evaluate on."""
        return True

    def fit(self) -> P:
        """Train from where a worker left to the end, and put the best weights back."""
        found = self.run.writer.newest_folder(PHASE)
        if found is not None:
            self.progress = replace(self.progress, **checkpoints.read_progress(found))
        if not self.progress.stopped_early and self.progress.step < self.steps:
            self.train(resume_from_checkpoint=None if found is None else str(found))
        elif found is not None:
            self._load_from_checkpoint(str(found))
        if self.options.patience and self.progress.best_step != self.progress.step and self._best:
            checkpoints.put_back(self.trained, self._best)
        self.trained.eval()
        return self.progress

    def after_step(self, control: Any) -> None:
        """Count the step; now and then tell, evaluate and keep a checkpoint."""
        step = self.progress.step = int(self.state.global_step)
        due = step % self.options.checkpoint_every(self.steps) == 0 or step == self.steps
        if not due and step % max(1, self.steps // POINTS):
            return
        point = self.point(step)
        if due and self.evaluates:
            self._evaluate_now(point)
        self.progress.curves.append(point)
        if due:
            self.run.writer.save_folder(PHASE, step, self._save_all, self.ranks)
        if self.progress.stopped_early:
            control.should_training_stop = True
        told = {name: value for name, value in point.items() if name != "step"}
        self.run.progress("training", step, self.steps, told)

    def floating_point_ops(self, inputs: Any) -> int:
        """Not counted."""
        return 0

    def learning_rate_now(self) -> float:
        """The rate of the step that runs."""
        return float(self._get_learning_rate())

    def _evaluate_now(self, point: Point) -> None:
        self.trained.eval()
        better, patience = self.measure(point), self.options.patience
        self.restart_clock()
        fold(self.trained)
        self.progress.count(better=better, patience=patience)
        if better and patience:
            self._best = checkpoints.copied(checkpoints.trained_tensors(self.trained))

    def _save_all(self, folder: Path) -> None:
        progress = asdict(self.progress)
        steps = self.optimizer, self.lr_scheduler
        checkpoints.save(folder, self.trained, self._best, *steps, progress, self.ranks)
        if self.ranks.first:
            self.state.save_to_json(str(folder / "trainer_state.json"))

    # What the Trainer calls to resume, at the right moments of its own.

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        weights = checkpoints.read_weights(folder, "weights", self.trained)
        assert weights is not None
        checkpoints.put_back(self.trained, weights)
        self._best = checkpoints.read_weights(folder, "best", self.trained)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            checkpoints.load_steps(Path(checkpoint), self.optimizer, self.lr_scheduler)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            checkpoints.load_generators(Path(checkpoint), self.ranks)
        self.restart_clock()

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return torch.utils.data.SequentialSampler(self._items)


def check_finite(value: float, what: str) -> None:
    """Raise Precondition where training has gone astray."""
    if not math.isfinite(value):
        raise Precondition(
            f"{what} is {value}; use a lower learning_rate", differences={"loss": str(value)}
        )


class _AfterStep(TrainerCallback):  # type: ignore[misc]
    def __init__(self, loop: Loop[Any]) -> None:
        self._loop = loop

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        self._loop.after_step(control)


def _arguments(
    options: LoopOptions, training: Training, steps: int, batch: int, clip_norm: float
) -> TrainingArguments:
    """The Trainer's settings: one pass over the planned items, nothing saved or logged."""
    if not training.ranks.alone:  # it would say that torchrun was forgotten
        logging.getLogger("transformers.training_args").setLevel(logging.ERROR)
    cpu = training.surroundings.device == "cpu"
    if not cpu:
        torch.cuda.set_device(torch.device(training.surroundings.device).index or 0)
        torch.backends.cudnn.deterministic = True
    arguments = TrainingArguments(
        output_dir=str(training.writer.run.path / "checkpoint"),
        max_steps=steps,
        per_device_train_batch_size=batch,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        lr_scheduler_type="cosine",
        warmup_steps=math.ceil(options.warmup_share * steps),
        max_grad_norm=clip_norm,
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
        arguments._n_gpu = 1  # ranks are processes of their own, which the Trainer need not know
    return arguments
