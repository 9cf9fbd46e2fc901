"""`stillhouse distill classifier`: an image classifier becomes a smaller network."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import typer
from stillhouse.common.v1 import items_pb2
from stillhouse.gateway.v1 import jobs_pb2 as pb
from stillhouse.student.v1 import student_pb2

from stillhouse_client import names
from stillhouse_client.commands.flags import spread
from stillhouse_client.commands.starting import StartFlags, start
from stillhouse_client.commands.training_flags import Precision
from stillhouse_client.errors import InvalidRequest


class Policy(StrEnum):
    """How views differ from their image."""

    NONE = "none"
    FLIP_CROP = "flip_crop"
    STRONG = "strong"


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(spread(classifier))


@dataclass(frozen=True)
class NetworkFlags:
    """What the student is."""

    architecture: Annotated[
        str, typer.Option(help="timm's name, or small-cnn; that of --weights.")
    ] = ""
    weights: Annotated[
        str, typer.Option(help="Image model of the catalogue to start from; random weights.")
    ] = ""
    input_size: Annotated[
        int, typer.Option(min=0, help="Side of the input in pixels; that of --weights, or 64.")
    ] = 0

    def check(self) -> None:
        """Raise InvalidRequest where there is neither a network nor weights."""
        if not self.architecture and not self.weights:
            raise InvalidRequest(
                "--architecture or --weights is needed", hint="for example --architecture small-cnn"
            )


@dataclass(frozen=True)
class ViewFlags:
    """The views that the teacher answers for and the student trains on."""

    policy: Annotated[
        Policy, typer.Option(help="none: images as they are. flip_crop. strong: colours, too.")
    ] = Policy.FLIP_CROP
    views: Annotated[
        int, typer.Option(min=0, max=64, help="Views of each image; 4, of policy none 1.")
    ] = 0
    view_seed: Annotated[int, typer.Option(help="Seed of the views.")] = 0

    def message(self) -> items_pb2.Augmentation:
        """Return the flags as the contract has them."""
        views = self.views or (1 if self.policy is Policy.NONE else 4)
        return items_pb2.Augmentation(policy=self.policy, views=views, seed=self.view_seed)


@dataclass(frozen=True)
class LearningFlags:
    """How the student is trained."""

    temperature: Annotated[
        float, typer.Option(min=0, help="Temperature of teacher and student; 4.")
    ] = 0
    soft_weight: Annotated[
        float, typer.Option(min=0, max=1, help="Weight of the teacher beside the labels; 0.9.")
    ] = 0
    feature_weight: Annotated[
        float, typer.Option(min=0, help="Weight of the match with the teacher's features.")
    ] = 0
    steps: Annotated[int, typer.Option(min=0, help="Optimizer steps; by --epochs.")] = 0
    epochs: Annotated[float, typer.Option(min=0, help="Passes over the images; 30.")] = 0
    batch: Annotated[int, typer.Option(min=0, help="Images in a step; 64.")] = 0
    learning_rate: Annotated[float, typer.Option(min=0, help="Peak rate; 1e-3.")] = 0
    warmup: Annotated[
        float, typer.Option(min=0, max=1, help="Share of steps in which the rate rises; 0.05.")
    ] = 0
    weight_decay: Annotated[float, typer.Option(min=0, help="Weight decay.")] = 0
    checkpoint_steps: Annotated[
        int, typer.Option(min=0, help="Steps between checkpoints and evaluations; a tenth.")
    ] = 0
    patience: Annotated[
        int, typer.Option(min=0, help="Stop after so many evaluations without gain; 0: never.")
    ] = 0
    precision: Annotated[
        Precision | None, typer.Option(help="bfloat16 where the device multiplies it faster.")
    ] = None
    seed: Annotated[int, typer.Option(help="Seed of first weights and order of images.")] = 0

    def message(self) -> student_pb2.ClassifierTraining:
        """Return the flags as the contract has them. Raises InvalidRequest for what excludes."""
        if self.steps and self.epochs:
            raise InvalidRequest("--steps and --epochs exclude one another", hint="leave one out")
        return student_pb2.ClassifierTraining(
            max_steps=self.steps,
            epochs=self.epochs,
            batch_images=self.batch,
            learning_rate=self.learning_rate,
            warmup_share=self.warmup,
            weight_decay=self.weight_decay,
            temperature=self.temperature,
            soft_weight=self.soft_weight,
            feature_weight=self.feature_weight,
            precision=self.precision or "",
            seed=self.seed,
            patience=self.patience,
            checkpoint_steps=self.checkpoint_steps,
        )


def classifier(
    dataset: Annotated[str, typer.Option(help="Dataset of images with labels to learn from.")],
    teacher: Annotated[str, typer.Option(help="Model to distil: see `stillhouse models list`.")],
    network: NetworkFlags,
    seen: ViewFlags,
    training: LearningFlags,
    flags: StartFlags,
    model: Annotated[str, typer.Option(help="Name of the new model; {dataset}-classifier.")] = "",
    controls: Annotated[
        bool, typer.Option("--controls", help="Train on labels alone and teacher alone, too.")
    ] = False,
    training_seeds: Annotated[int, typer.Option(min=0, help="Training seeds per arm; 1.")] = 0,
) -> None:
    """Distil an image classifier into a smaller network."""
    network.check()
    spec = pb.ClassifierJobSpec(
        dataset=names.full("datasets", dataset, project=flags.project),
        teacher=names.full("models", teacher, project=flags.project),
        model_id=model,
        architecture=network.architecture,
        weights=network.weights,
        input_size=network.input_size,
        augmentation=seen.message(),
        training=training.message(),
        controls=controls,
        training_seeds=training_seeds,
    )
    start(spec, flags)
