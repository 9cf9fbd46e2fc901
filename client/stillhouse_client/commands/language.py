"""`stillhouse distill language`: a language model learns from another one, or from a dataset."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer
from stillhouse.gateway.v1 import jobs_pb2 as pb

from stillhouse_client import names
from stillhouse_client.commands import training_flags
from stillhouse_client.commands.flags import spread
from stillhouse_client.commands.starting import StartFlags, start
from stillhouse_client.commands.training_flags import SamplingFlags, TrainingFlags
from stillhouse_client.errors import InvalidRequest


class Mode(StrEnum):
    """Where the training signal comes from."""

    STORED = "stored"
    SEQUENCE = "sequence"
    ON_POLICY = "on-policy"
    SUPERVISED = "supervised"


_MODES = {
    Mode.STORED: pb.LANGUAGE_MODE_STORED_TARGETS,
    Mode.SEQUENCE: pb.LANGUAGE_MODE_SEQUENCE_LEVEL,
    Mode.ON_POLICY: pb.LANGUAGE_MODE_ON_POLICY,
    Mode.SUPERVISED: pb.LANGUAGE_MODE_SUPERVISED,
}
Evaluate = Annotated[
    list[str] | None,
    typer.Option(help="Dataset measured before and after, too; repeatable."),
]
Verifier = Annotated[
    str, typer.Option(help="Which answers are right: exact, regex:PATTERN, numeric, python.")
]
Chat = Annotated[bool, typer.Option("--chat", help="Prompts are turns of a chat.")]
Replay = Annotated[
    str, typer.Option(help="Dataset of texts mixed in, to keep what the model knew.")
]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(spread(language))


def language(
    dataset: Annotated[str, typer.Option(help="Dataset of texts to learn from.")],
    student: Annotated[str, typer.Option(help="Model to start from.")],
    training: TrainingFlags,
    sampling: SamplingFlags,
    flags: StartFlags,
    teacher: Annotated[
        str, typer.Option(help="Model to learn from; none with --mode supervised.")
    ] = "",
    mode: Annotated[
        Mode,
        typer.Option(
            help="stored: its distributions, kept once. sequence: its answers. on-policy: it "
            "scores the student's. supervised: the dataset's own answers."
        ),
    ] = Mode.STORED,
    keep_layers: Annotated[
        str, typer.Option(help="Layers to keep, from 0: 0-29:2 or 0,2,5-8; all.")
    ] = "",
    bytes_per_token: Annotated[
        float, typer.Option(min=0, help="Bytes stored per token of --mode stored; 40.")
    ] = 0,
    answers: Annotated[
        int, typer.Option(min=0, help="Answers per prompt of --mode sequence; 1.")
    ] = 0,
    verifier: Verifier = "",
    evaluate: Evaluate = None,
    replay: Replay = "",
    chat: Chat = False,
    model: Annotated[str, typer.Option(help="Name of the new model; {dataset}-student.")] = "",
) -> None:
    """Train a language model on another one's predictions, or on a dataset."""
    if bool(teacher) == (mode is Mode.SUPERVISED):
        raise InvalidRequest(
            f"--mode {mode} {'has no teacher' if teacher else 'needs a --teacher'}",
            hint="--mode supervised learns from the dataset alone, all others from a teacher",
        )
    project = flags.project
    spec = pb.LanguageJobSpec(
        dataset=names.full("datasets", dataset, project=project),
        teacher=names.full("models", teacher, project=project),
        student=names.full("models", student, project=project),
        keep_layers=training_flags.layers(keep_layers),
        model_id=model,
        mode=_MODES[mode],
        training=training.message(),
        bytes_per_token=bytes_per_token,
        sampling=sampling.message(training.seed),
        answers_per_prompt=answers,
        verifier=training_flags.verifier(verifier),
        evaluation_datasets=[names.full("datasets", d, project=project) for d in evaluate or []],
        replay_dataset=names.full("datasets", replay, project=project),
        chat=chat,
    )
    start(spec, flags)
