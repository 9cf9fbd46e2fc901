"""How a language student is trained: the request's numbers with their defaults, checked."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from stillhouse.common.v1 import language_pb2

from services.common.errors import InvalidInput
from services.student.language.losses import DEFAULT_BETA, DEFAULT_SKEW, Divergence

MAX_STEPS = 1_000_000
MAX_SEQUENCES = 1024
MAX_LAYERS = 1024
ATTENTION_AND_FEED_FORWARD = "all-linear"
"""peft's name of every linear layer but the output layer."""

ULD_CROSS_ENTROPY = 0.4
"""Weight of the cross-entropy beside ULD where none is asked for: the paper's CE + 1.5 ULD, over
2.5. Sorted probabilities say how sure to be and not of which token, so ULD needs it."""

_DIVERGENCES: dict[int, Divergence | Literal["uld"]] = {
    language_pb2.LANGUAGE_LOSS_FORWARD_KL: "forward_kl",
    language_pb2.LANGUAGE_LOSS_REVERSE_KL: "reverse_kl",
    language_pb2.LANGUAGE_LOSS_JSD: "jsd",
    language_pb2.LANGUAGE_LOSS_SKEWED_KL: "skewed_kl",
    language_pb2.LANGUAGE_LOSS_SKEWED_REVERSE_KL: "skewed_reverse_kl",
    language_pb2.LANGUAGE_LOSS_ULD: "uld",
}


@dataclass(frozen=True)
class LoraOptions:
    """A low-rank adapter."""

    rank: int
    alpha: float
    dropout: float
    target_modules: tuple[str, ...]
    """Names of linear layers; empty means all of attention and feed-forward."""


@dataclass(frozen=True)
class LossOptions:
    """What is minimised. `divergence` is None for plain cross-entropy; `uld` is universal logit
    distillation, for a teacher of another tokenizer."""

    divergence: Divergence | Literal["uld"] | None
    temperature: float = 1.0
    cross_entropy_weight: float = 0.0
    """loss = (1 - weight) divergence + weight cross-entropy."""
    beta: float = DEFAULT_BETA
    skew: float = DEFAULT_SKEW


@dataclass(frozen=True)
class TrainingOptions:
    """Everything that decides how the weights change."""

    loss: LossOptions
    lora: LoraOptions | None
    max_steps: int
    """0 means by `epochs`."""
    epochs: float
    batch_sequences: int
    learning_rate: float
    warmup_share: float
    weight_decay: float
    seed: int
    checkpoint_steps: int
    """0 means a tenth of the steps."""
    patience: int
    """0 means never stop early."""
    precision: str
    sequence_length: int
    replay_share: float
    intermediate_states: int = 0
    """Kept layers of a cut whose states are drawn to those of the model as it was."""

    def steps(self, sequences: int, *, replay: bool) -> int:
        """Optimizer steps over so many sequences, where replay may fill a part of each step."""
        if self.max_steps:
            return self.max_steps
        fresh = self.batch_sequences * (1 - self.replay_share if replay else 1)
        return max(1, math.ceil(self.epochs * sequences / fresh))

    def checkpoint_every(self, steps: int) -> int:
        """Steps between checkpoints and evaluations."""
        return self.checkpoint_steps or max(1, math.ceil(steps / 10))


def read_options(message: language_pb2.LanguageTraining, *, teacher: bool) -> TrainingOptions:
    """The options of a request, where `teacher` says that there are targets. Raises InvalidInput
    that names every field out of range.
    """
    _check(message)
    lora = _lora(message.lora) if message.HasField("lora") else None
    return TrainingOptions(
        loss=_loss(message, teacher),
        lora=lora,
        max_steps=message.max_steps,
        epochs=message.epochs or 3.0,
        batch_sequences=message.batch_sequences or 8,
        learning_rate=message.learning_rate or (2e-4 if lora else 1e-4),
        warmup_share=message.warmup_share or 0.05,
        weight_decay=message.weight_decay,
        seed=message.seed & 0x7FFF_FFFF,
        checkpoint_steps=message.checkpoint_steps,
        patience=message.patience,
        precision=message.precision,
        sequence_length=message.sequence_length or 256,
        replay_share=message.replay_share or 0.25,
        intermediate_states=message.intermediate_states,
    )


def _lora(message: language_pb2.Lora) -> LoraOptions:
    rank = message.rank or 16
    names = tuple(message.target_modules)
    return LoraOptions(rank, message.alpha or 2.0 * rank, message.dropout, names)


def _loss(message: language_pb2.LanguageTraining, teacher: bool) -> LossOptions:
    asked = message.loss
    if asked == language_pb2.LANGUAGE_LOSS_UNSPECIFIED and teacher:
        asked = language_pb2.LANGUAGE_LOSS_FORWARD_KL
    divergence = _DIVERGENCES.get(asked)
    plain = (language_pb2.LANGUAGE_LOSS_UNSPECIFIED, language_pb2.LANGUAGE_LOSS_CROSS_ENTROPY)
    if divergence is None and asked not in plain:
        raise InvalidInput("training.loss: unknown value", field="training.loss")
    if divergence is not None and not teacher:
        raise InvalidInput(
            "training.loss: needs a teacher: give target_shards or on_policy",
            field="training.loss",
        )
    least = ULD_CROSS_ENTROPY if divergence == "uld" else 0.0
    return LossOptions(
        divergence=divergence,
        temperature=message.temperature or 1.0,
        cross_entropy_weight=message.cross_entropy_weight or least,
        beta=message.beta or DEFAULT_BETA,
        skew=message.skew or DEFAULT_SKEW,
    )


_RANGES: dict[str, tuple[float, float]] = {
    "max_steps": (0, MAX_STEPS),
    "epochs": (0, 10_000),
    "batch_sequences": (0, MAX_SEQUENCES),
    "learning_rate": (0, 10),
    "warmup_share": (0, 1),
    "weight_decay": (0, 10),
    "checkpoint_steps": (0, MAX_STEPS),
    "patience": (0, MAX_STEPS),
    "temperature": (0, 100),
    "cross_entropy_weight": (0, 1),
    "beta": (0, 1),
    "skew": (0, 1),
    "sequence_length": (0, 1 << 20),
    "replay_share": (0, 0.9),
    "intermediate_states": (0, MAX_LAYERS),
}
_LORA_RANGES: dict[str, tuple[float, float]] = {
    "rank": (0, 1024),
    "alpha": (0, 1e6),
    "dropout": (0, 0.95),
}


def _check(message: language_pb2.LanguageTraining) -> None:
    wrong = list(_outside(message, _RANGES, "training"))
    if message.HasField("lora"):
        wrong += _outside(message.lora, _LORA_RANGES, "training.lora")
    if message.precision not in ("", "float32", "bfloat16"):
        wrong.append(("training.precision", "must be float32, bfloat16 or empty"))
    if wrong:
        text = "; ".join(f"{field}: {why}" for field, why in wrong)
        raise InvalidInput(text, violations=wrong)


def _outside(
    message: object, ranges: dict[str, tuple[float, float]], where: str
) -> Iterable[tuple[str, str]]:
    for name, (low, high) in ranges.items():
        # NaN compares false, so it lies outside too.
        if not low <= getattr(message, name) <= high:
            yield f"{where}.{name}", f"must be from {low:g} to {high:g}"
