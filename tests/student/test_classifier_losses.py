"""The losses against torch.distributions, against loops, and their gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Categorical, kl_divergence

from services.student.classifier.losses import (
    LossOptions,
    binary_cross_entropy,
    cross_entropy,
    distillation_losses,
    feature_distance,
    softened_binary_kl,
    softened_kl,
)

TEMPERATURES = [0.5, 1.0, 4.0, 20.0]


def logits(seed: int, rows: int = 6, classes: int = 5, scale: float = 4.0) -> torch.Tensor:
    return scale * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_soft_labels_equal_torch_distributions(temperature: float) -> None:
    student, teacher = logits(0), logits(1)
    exact_s, exact_t = student.double() / temperature, teacher.double() / temperature
    expected = kl_divergence(Categorical(logits=exact_t), Categorical(logits=exact_s))
    got = softened_kl(student, teacher, temperature)
    assert float(got) == pytest.approx(float(temperature**2 * expected.mean()), rel=1e-4)
    expected = kl_divergence(Bernoulli(logits=exact_t), Bernoulli(logits=exact_s))
    got = softened_binary_kl(student, teacher, temperature)
    assert float(got) == pytest.approx(float(temperature**2 * expected.sum(1).mean()), rel=1e-4)


def test_hard_labels_equal_a_loop() -> None:
    student, labels = logits(2), torch.tensor([0, 4, 2, 2, 1, 3])
    expected = 0.0
    for row, label in zip(student.tolist(), labels.tolist(), strict=True):
        expected -= row[label] - math.log(sum(math.exp(x) for x in row))
    hot = nn.functional.one_hot(labels, 5)
    assert float(cross_entropy(student, hot)) == pytest.approx(expected / 6, rel=1e-5)
    several = (logits(3) > 0).to(torch.uint8)
    expected = 0.0
    for row, wanted in zip(student.tolist(), several.tolist(), strict=True):
        for x, y in zip(row, wanted, strict=True):
            p = 1 / (1 + math.exp(-x))
            expected -= math.log(p if y else 1 - p)
    assert float(binary_cross_entropy(student, several)) == pytest.approx(expected / 6, rel=1e-4)


@pytest.mark.parametrize("loss", [softened_kl, softened_binary_kl])
def test_a_student_equal_to_its_teacher_has_no_soft_loss(loss) -> None:  # type: ignore[no-untyped-def]
    teacher = logits(4)
    student = teacher.clone().requires_grad_()
    value = loss(student, teacher, 4.0)
    value.backward()
    assert float(value.detach()) == pytest.approx(0, abs=1e-5)
    assert float(student.grad.abs().max()) < 1e-6  # type: ignore[union-attr]
    assert float(loss(logits(5), teacher, 4.0)) > 0
    # Adding a number to all logits of a softmax changes nothing.
    torch.testing.assert_close(
        softened_kl(teacher + 7, logits(6), 3.0), softened_kl(teacher, logits(6), 3.0)
    )


def test_the_gradient_keeps_its_size_at_high_temperatures() -> None:
    """As T grows, T^2 KL goes to half the squared distance of the centred logits over K."""
    student, teacher = logits(7).requires_grad_(), logits(8)
    softened_kl(student, teacher, 1000.0).backward()
    distance = (student - teacher).detach()
    expected = (distance - distance.mean(1, keepdim=True)) / 5 / 6
    torch.testing.assert_close(student.grad, expected, rtol=2e-2, atol=1e-4)


def test_extreme_logits_stay_finite() -> None:
    student, teacher = logits(9, scale=1e4).requires_grad_(), logits(10, scale=1e4).half()
    for loss in (softened_kl, softened_binary_kl):
        student.grad = None
        value = loss(student, teacher, 1.0)
        value.backward()
        assert bool(torch.isfinite(value))
        assert bool(torch.isfinite(student.grad).all())


def test_features_are_compared_by_direction() -> None:
    projection = nn.Linear(3, 7, bias=False)
    student, teacher = logits(11, classes=3), logits(12, classes=7)
    got = feature_distance(student, teacher, projection)
    cosine = nn.functional.cosine_similarity(projection(student), teacher)
    torch.testing.assert_close(got, (2 - 2 * cosine).mean())
    torch.testing.assert_close(feature_distance(student, 100 * teacher, projection), got)
    same = feature_distance(student, projection(student), projection)
    assert float(same.detach()) < 1e-6


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_parts_are_weighed(multi_label: bool) -> None:
    student, teacher = logits(13), logits(14)
    hot = nn.functional.one_hot(torch.arange(6) % 5, 5)
    options = LossOptions(0.7, 4.0, multi_label, feature_weight=2.0)
    found = distillation_losses(options, student, hot, teacher, torch.tensor(0.25))
    soft = (softened_binary_kl if multi_label else softened_kl)(student, teacher, 4.0)
    hard = (binary_cross_entropy if multi_label else cross_entropy)(student, hot)
    torch.testing.assert_close(found.total, 0.7 * soft + 0.3 * hard + 0.5)
    alone = distillation_losses(LossOptions(0.0, 4.0, multi_label), student, hot)
    assert alone.soft is None
    torch.testing.assert_close(alone.total, hard)


def test_half_precision_logits_are_summed_in_float32() -> None:
    student, teacher = logits(15).bfloat16(), logits(16).half()
    assert softened_kl(student, teacher, 4.0).dtype == torch.float32
    torch.testing.assert_close(
        softened_kl(student, teacher, 4.0), softened_kl(student.float(), teacher.float(), 4.0)
    )
