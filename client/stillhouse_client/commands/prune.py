"""`stillhouse distill prune`: a language model is cut to a size, and learns from what it was."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import typer
from stillhouse.gateway.v1 import jobs_pb2 as pb

from stillhouse_client import names
from stillhouse_client.commands import training_flags
from stillhouse_client.commands.flags import spread
from stillhouse_client.commands.language import Evaluate, Verifier
from stillhouse_client.commands.starting import StartFlags, start
from stillhouse_client.commands.training_flags import SamplingFlags, TrainingFlags
from stillhouse_client.errors import InvalidRequest


class Axes(StrEnum):
    """What may be cut."""

    WIDTH = "width"
    DEPTH = "depth"
    BOTH = "both"


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(spread(prune))


@dataclass(frozen=True)
class SizeFlags:
    """What the new model may be at most; one of these."""

    non_embedding_share: Annotated[
        float | None, typer.Option(help="Share of the parameters outside the embeddings.")
    ] = None
    max_parameters: Annotated[
        int | None, typer.Option(help="Parameters, a tied embedding counted once.")
    ] = None
    max_bytes: Annotated[
        int | None, typer.Option(help="Bytes of the weights at --precision; float32.")
    ] = None
    max_latency_ms: Annotated[
        float | None,
        typer.Option(help="Milliseconds of a pass over 128 tokens, where students train."),
    ] = None

    def fill(self, spec: pb.PruneJobSpec) -> None:
        """Set the size of `spec`. Raises InvalidRequest unless there is exactly one."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) != 1:
            raise InvalidRequest(
                "a prune job has one size",
                hint="give one of --non-embedding-share, --max-parameters, --max-bytes, "
                "--max-latency-ms",
            )
        for name, value in given.items():
            setattr(spec, name, value)


@dataclass(frozen=True)
class CutFlags:
    """How the cut is found, and what is trained beside it, to compare."""

    axes: Annotated[
        Axes,
        typer.Option(help="width: channels, neurons, heads. depth: layers. both: either, or both."),
    ] = Axes.BOTH
    calibration_sequences: Annotated[
        int, typer.Option(min=0, help="Sequences that importance is measured on; 1024.")
    ] = 0
    candidates: Annotated[
        int, typer.Option(min=0, help="Cuts trained shortly to choose one; 1: none is.")
    ] = 0
    ranking_steps: Annotated[
        int, typer.Option(min=0, help="Steps of that training; a tenth of the whole one's.")
    ] = 0
    controls: Annotated[
        bool,
        typer.Option(
            "--controls", help="Train without distillation, a random cut and random weights, too."
        ),
    ] = False
    training_seeds: Annotated[int, typer.Option(min=0, help="Training seeds per arm; 1.")] = 0
    rounds: Annotated[
        int,
        typer.Option(min=0, help="Cut in so many even steps, each trained, for large cuts; 1."),
    ] = 0
    intermediate_states: Annotated[
        int,
        typer.Option(min=0, help="Layers whose states are drawn to the whole model's; 0: none."),
    ] = 0
    correct_teacher: Annotated[
        bool,
        typer.Option(
            "--correct-teacher", help="Train the whole model on the dataset first; it is kept, too."
        ),
    ] = False


def prune(
    dataset: Annotated[str, typer.Option(help="Dataset of texts to measure and retrain on.")],
    model: Annotated[str, typer.Option(help="Model to prune; as it is, it is the teacher.")],
    size: SizeFlags,
    cut: CutFlags,
    training: TrainingFlags,
    sampling: SamplingFlags,
    flags: StartFlags,
    bytes_per_token: Annotated[
        float, typer.Option(min=0, help="Bytes stored per target token; 40.")
    ] = 0,
    verifier: Verifier = "",
    evaluate: Evaluate = None,
    model_id: Annotated[str, typer.Option(help="Name of the new model; {model}-pruned.")] = "",
) -> None:
    """Cut a language model to a size; what is left learns from the model as it was."""

    def named(collection: str, name: str) -> str:
        return names.full(collection, name, project=flags.project)

    spec = pb.PruneJobSpec(
        dataset=named("datasets", dataset),
        model=named("models", model),
        model_id=model_id,
        axes=pb.PruneAxes.Value(f"PRUNE_AXES_{cut.axes.name}"),
        training=training.message(),
        bytes_per_token=bytes_per_token,
        calibration_sequences=cut.calibration_sequences,
        candidates=cut.candidates,
        ranking_steps=cut.ranking_steps,
        controls=cut.controls,
        training_seeds=cut.training_seeds,
        correct_teacher=cut.correct_teacher,
        rounds=cut.rounds,
        evaluation_datasets=[named("datasets", one) for one in evaluate or []],
        verifier=training_flags.verifier(verifier),
        sampling=sampling.message(training.seed),
    )
    if cut.intermediate_states:
        spec.training.intermediate_states = cut.intermediate_states
    size.fill(spec)
    start(spec, flags)
