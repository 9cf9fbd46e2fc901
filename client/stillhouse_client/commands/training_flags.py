"""Flags of how a language model is trained and sampled, and what they mean."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import typer
from stillhouse.common.v1 import language_pb2 as pb

from stillhouse_client.errors import InvalidRequest


class Precision(StrEnum):
    """What training computes in."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class LossName(StrEnum):
    """What a student is trained towards."""

    CROSS_ENTROPY = "cross-entropy"
    FORWARD_KL = "forward-kl"
    REVERSE_KL = "reverse-kl"
    JSD = "jsd"
    SKEWED_KL = "skewed-kl"
    SKEWED_REVERSE_KL = "skewed-reverse-kl"
    ULD = "uld"


@dataclass(frozen=True)
class TrainingFlags:
    """How the model is trained."""

    lora: Annotated[
        bool, typer.Option("--lora/--full", help="Train a low-rank adapter, or all weights.")
    ] = False
    rank: Annotated[int, typer.Option(min=0, help="Rank of the adapter; 16.")] = 0
    alpha: Annotated[float, typer.Option(min=0, help="Alpha of the adapter; twice its rank.")] = 0
    dropout: Annotated[float, typer.Option(min=0, max=1, help="Dropout before the adapter.")] = 0
    target_module: Annotated[
        list[str] | None, typer.Option(help="Layer the adapter is at; repeatable; all linear ones.")
    ] = None
    steps: Annotated[int, typer.Option(min=0, help="Optimizer steps; by --epochs.")] = 0
    epochs: Annotated[float, typer.Option(min=0, help="Passes over the data; 3.")] = 0
    batch: Annotated[int, typer.Option(min=0, help="Sequences in a step; 8.")] = 0
    learning_rate: Annotated[
        float, typer.Option(min=0, help="Peak rate; 2e-4 with an adapter, else 1e-4.")
    ] = 0
    warmup: Annotated[
        float, typer.Option(min=0, max=1, help="Share of steps in which the rate rises; 0.05.")
    ] = 0
    weight_decay: Annotated[float, typer.Option(min=0, help="Weight decay.")] = 0
    sequence_length: Annotated[int, typer.Option(min=0, help="Tokens of a sequence; 256.")] = 0
    loss: Annotated[LossName | None, typer.Option(help="forward-kl where there is a teacher.")] = (
        None
    )
    temperature: Annotated[
        float, typer.Option(min=0, help="Temperature of teacher and student; 1.")
    ] = 0
    cross_entropy_weight: Annotated[
        float, typer.Option(min=0, max=1, help="Weight of the text itself beside the loss.")
    ] = 0
    beta: Annotated[float, typer.Option(min=0, max=1, help="Of the loss jsd; 0.5.")] = 0
    skew: Annotated[float, typer.Option(min=0, max=1, help="Of the skewed losses; 0.1.")] = 0
    replay_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of a step from --replay; a quarter.")
    ] = 0
    checkpoint_steps: Annotated[
        int, typer.Option(min=0, help="Steps between checkpoints and evaluations; a tenth.")
    ] = 0
    patience: Annotated[
        int, typer.Option(min=0, help="Stop after so many evaluations without gain; 0: never.")
    ] = 0
    precision: Annotated[
        Precision | None, typer.Option(help="bfloat16 where the device multiplies it faster.")
    ] = None
    seed: Annotated[int, typer.Option(help="Seed of data order, adapters and sampling.")] = 0

    def message(self) -> pb.LanguageTraining:
        """Return the flags as the contract has them. Raises InvalidRequest for what excludes."""
        if self.steps and self.epochs:
            raise InvalidRequest("--steps and --epochs exclude one another", hint="leave one out")
        loss = f"LANGUAGE_LOSS_{self.loss.name}" if self.loss else "LANGUAGE_LOSS_UNSPECIFIED"
        return pb.LanguageTraining(
            lora=self._lora(),
            max_steps=self.steps,
            epochs=self.epochs,
            batch_sequences=self.batch,
            learning_rate=self.learning_rate,
            warmup_share=self.warmup,
            weight_decay=self.weight_decay,
            seed=self.seed,
            checkpoint_steps=self.checkpoint_steps,
            patience=self.patience,
            precision=self.precision or "",
            loss=pb.LanguageLoss.Value(loss),
            temperature=self.temperature,
            cross_entropy_weight=self.cross_entropy_weight,
            beta=self.beta,
            skew=self.skew,
            sequence_length=self.sequence_length,
            replay_share=self.replay_share,
        )

    def _lora(self) -> pb.Lora | None:
        modules = self.target_module or []
        if self.lora:
            return pb.Lora(
                rank=self.rank, alpha=self.alpha, dropout=self.dropout, target_modules=modules
            )
        if self.rank or self.alpha or self.dropout or modules:
            raise InvalidRequest(
                "--rank, --alpha, --dropout and --target-module are of an adapter",
                hint="add --lora",
            )
        return None


@dataclass(frozen=True)
class SamplingFlags:
    """How text is sampled."""

    sample_temperature: Annotated[
        float, typer.Option(min=0, help="Temperature of sampled text; 0 takes the default.")
    ] = 0
    top_p: Annotated[float, typer.Option(min=0, max=1, help="Nucleus of sampled text; 1.")] = 0
    max_tokens: Annotated[int, typer.Option(min=0, help="Most tokens of an answer; 128.")] = 0

    def message(self, seed: int = 0) -> pb.Sampling | None:
        """Return the flags as the contract has them; None where none was given."""
        if not (self.sample_temperature or self.top_p or self.max_tokens):
            return None
        return pb.Sampling(
            temperature=self.sample_temperature,
            top_p=self.top_p,
            max_tokens=self.max_tokens,
            seed=seed,
        )


def layers(text: str) -> list[int]:
    """Return the layers of `0-29:2` (from, to, step) or `0,2,5-8`, rising.

    Raises InvalidRequest for anything else.
    """
    found: set[int] = set()
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4})(?::([1-9]\d{0,3}))?)?", part)
        first, last, step = match.groups() if match else ("1", "0", None)
        if int(last or first) < int(first):
            raise InvalidRequest(
                f"{part!r} are no layers", hint="write 0-29:2 (from, to, step) or 0,2,5-8"
            )
        found |= set(range(int(first), int(last or first) + 1, int(step or 1)))
    return sorted(found)


def verifier(text: str) -> pb.Verifier | None:
    """Return the verifier of `exact`, `regex`, `regex:PATTERN`, `numeric` or `python`.

    Raises InvalidRequest for anything else.
    """
    kind, _, pattern = text.partition(":")
    made = {
        "exact": pb.Verifier(exact_match=pb.ExactMatchVerifier()),
        "regex": pb.Verifier(regex=pb.RegexVerifier(pattern=pattern)),
        "numeric": pb.Verifier(numeric=pb.NumericVerifier()),
        "python": pb.Verifier(python_tests=pb.PythonTestsVerifier()),
    }
    if not text:
        return None
    if kind not in made or (pattern and kind != "regex"):
        raise InvalidRequest(
            f"{text!r} is no verifier", hint="write exact, regex:PATTERN, numeric or python"
        )
    return made[kind]
