"""Defaults and limits of a language recipe's numbers."""

from __future__ import annotations

import pytest
from stillhouse.common.v1 import language_pb2

from services.common.errors import InvalidInput
from services.student.language.options import read_options


def test_defaults_are_those_of_the_contract():
    found = read_options(language_pb2.LanguageTraining(), teacher=False)
    assert (found.epochs, found.batch_sequences, found.learning_rate) == (3, 8, 1e-4)
    assert (found.warmup_share, found.sequence_length, found.replay_share) == (0.05, 256, 0.25)
    assert found.loss.divergence is None
    taught = read_options(
        language_pb2.LanguageTraining(lora=language_pb2.Lora(rank=4)), teacher=True
    )
    assert taught.loss.divergence == "forward_kl"
    assert (taught.learning_rate, taught.lora.alpha) == (2e-4, 8)


def test_uld_weighs_the_text_as_the_paper_does():
    asked = language_pb2.LanguageTraining(loss=language_pb2.LANGUAGE_LOSS_ULD)
    found = read_options(asked, teacher=True).loss
    weight = found.cross_entropy_weight
    assert found.divergence == "uld"
    assert (1 - weight) / weight == pytest.approx(1.5)
    asked.cross_entropy_weight = 0.25
    assert read_options(asked, teacher=True).loss.cross_entropy_weight == 0.25


def test_epochs_count_what_replay_leaves_of_a_step():
    found = read_options(language_pb2.LanguageTraining(epochs=2, batch_sequences=4), teacher=False)
    assert found.steps(30, replay=False) == 15
    assert found.steps(30, replay=True) == 20
    assert found.checkpoint_every(25) == 3
    fixed = read_options(language_pb2.LanguageTraining(max_steps=7), teacher=False)
    assert fixed.steps(1000, replay=True) == 7


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"max_steps": -1}, "training.max_steps"),
        ({"learning_rate": float("inf")}, "training.learning_rate"),
        ({"cross_entropy_weight": 1.5}, "training.cross_entropy_weight"),
        ({"temperature": float("nan")}, "training.temperature"),
        ({"precision": "float8"}, "training.precision"),
        ({"lora": language_pb2.Lora(rank=-4)}, "training.lora.rank"),
        ({"loss": 99}, "training.loss"),
    ],
)
def test_out_of_range_is_named(options, field):
    with pytest.raises(InvalidInput) as caught:
        read_options(language_pb2.LanguageTraining(**options), teacher=True)
    assert [name for name, _ in caught.value.violations] == [field]
