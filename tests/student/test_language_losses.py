"""Language losses against torch.distributions, loops in float64, and finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from services.student.language.losses import DIVERGENCES, cross_entropy, divergence, uld
from services.student.language.sparse_losses import (
    SparseTargets,
    bucket_divergence,
    label_targets,
    sampled_cross_entropy,
    sparse_uld,
)

V, N = 11, 5


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(3)


@pytest.fixture
def student():
    return torch.randn(N, V, requires_grad=True)


@pytest.fixture
def teacher():
    return torch.randn(N, V) * 2


def by_loops(name, log_p, log_q, beta, skew) -> float:
    """A divergence in float64, one event at a time, straight from its definition."""
    total = 0.0
    for row_p, row_q in zip(log_p.double().exp(), log_q.double().exp(), strict=True):
        for p, q in zip(row_p.tolist(), row_q.tolist(), strict=True):
            total += _event(name, p, q, beta, skew)
    return total / len(log_p)


def _event(name, p, q, beta, skew) -> float:
    def kl(a, b):
        return a * math.log(a / b) if a else 0.0

    m = beta * p + (1 - beta) * q
    return {
        "forward_kl": lambda: kl(p, q),
        "reverse_kl": lambda: kl(q, p),
        "jsd": lambda: beta * kl(p, m) + (1 - beta) * kl(q, m),
        "skewed_kl": lambda: kl(p, skew * p + (1 - skew) * q),
        "skewed_reverse_kl": lambda: kl(q, (1 - skew) * p + skew * q),
    }[name]()


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_divergences_are_their_definitions(student, teacher, name, temperature):
    found = divergence(name, student, teacher, temperature=temperature, beta=0.3, skew=0.2)
    log_p = (teacher / temperature).log_softmax(-1)
    log_q = (student.detach() / temperature).log_softmax(-1)
    wanted = temperature**2 * by_loops(name, log_p, log_q, 0.3, 0.2)
    assert found.item() == pytest.approx(wanted, rel=1e-5)


def test_kl_agrees_with_torch_distributions(student, teacher):
    p, q = Categorical(logits=teacher), Categorical(logits=student)
    forward, reverse = kl_divergence(p, q).mean(), kl_divergence(q, p).mean()
    assert torch.allclose(divergence("forward_kl", student, teacher), forward, atol=1e-6)
    assert torch.allclose(divergence("reverse_kl", student, teacher), reverse, atol=1e-6)


def test_jsd_becomes_a_kl_at_the_ends_and_is_half_symmetric(student, teacher):
    for beta, name in ((0.0, "forward_kl"), (1.0, "reverse_kl")):
        found = divergence("jsd", student, teacher, beta=beta)
        assert torch.equal(found, divergence(name, student, teacher))
    swapped = divergence("jsd", teacher, student.detach())
    assert torch.allclose(divergence("jsd", student, teacher), swapped, atol=1e-6)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_gradients_agree_with_finite_differences(teacher, name):
    logits = torch.randn(N, V, requires_grad=True)
    (grad,) = torch.autograd.grad(divergence(name, logits, teacher, beta=0.3), logits)
    step = 1e-2
    for at in ((0, 0), (2, 7), (4, 10)):
        shift = torch.zeros(N, V)
        shift[at] = step
        high = divergence(name, logits.detach() + shift, teacher, beta=0.3)
        low = divergence(name, logits.detach() - shift, teacher, beta=0.3)
        assert grad[at].item() == pytest.approx(((high - low) / (2 * step)).item(), abs=2e-4)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_equal_distributions_cost_nothing_and_extremes_stay_finite(teacher, name):
    assert divergence(name, teacher.clone(), teacher).item() == pytest.approx(0, abs=1e-6)
    one_hot = torch.full((N, V), -200.0)
    one_hot[:, 0] = 200.0
    logits = one_hot.roll(1, dims=1).requires_grad_()
    loss = divergence(name, logits, one_hot)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_padding_changes_nothing(student, teacher):
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    logits, other = torch.randn(2, 4, V) * 1e4, torch.randn(2, 4, V)
    logits[mask.bool()], other[mask.bool()] = student.detach(), teacher
    labels = torch.randint(V, (2, 4))
    for found, wanted in (
        (divergence("jsd", logits, other, mask), divergence("jsd", student, teacher)),
        (uld(logits, other, mask), uld(student, teacher)),
        (cross_entropy(logits, labels, mask), cross_entropy(student, labels[mask.bool()])),
    ):
        assert torch.equal(found, wanted)
    with pytest.raises(ValueError, match="no target"):
        cross_entropy(logits, labels, mask * 0)


def test_cross_entropy_is_the_mean_negative_log_probability(student):
    labels = torch.randint(V, (N,))
    wanted = -Categorical(logits=student).log_prob(labels).mean()
    assert torch.allclose(cross_entropy(student, labels), wanted)


def test_labels_as_targets_are_the_same_loss_in_many_rows():
    logits, labels = torch.randn(300, V, requires_grad=True), torch.randint(V, (300,))
    found, wanted = (
        sampled_cross_entropy(logits, label_targets(labels)),
        cross_entropy(logits, labels),
    )
    assert torch.allclose(found, wanted)
    ours = torch.autograd.grad(0.5 * found, logits)[0]
    assert torch.allclose(ours, torch.autograd.grad(0.5 * wanted, logits)[0], atol=1e-7)


def test_uld_sorts_and_pads(student):
    other = torch.randn(N, V + 6)
    total = 0.0
    for row_q, row_p in zip(student.detach().softmax(-1), other.softmax(-1), strict=True):
        q = sorted(row_q.tolist(), reverse=True) + [0.0] * 6
        p = sorted(row_p.tolist(), reverse=True)
        total += sum(abs(a - b) for a, b in zip(p, q, strict=True))
    assert uld(student, other).item() == pytest.approx(total / N, rel=1e-5)
    shuffled = student.detach()[:, torch.randperm(V)]
    assert uld(shuffled, student).item() == pytest.approx(0, abs=1e-6)


def test_wrong_shares_and_vocabularies_are_refused(student, teacher):
    with pytest.raises(ValueError, match="beta"):
        divergence("jsd", student, teacher, beta=1.5)
    with pytest.raises(ValueError, match="vocabularies"):
        divergence("jsd", student, teacher[:, :-1])


def dense(weights: torch.Tensor, kept: torch.Tensor) -> SparseTargets:
    """Targets [N, V] of weights where `kept`."""
    row, ids = kept.nonzero(as_tuple=True)
    tail = 1 - torch.where(kept, weights, torch.zeros(())).sum(-1)
    return SparseTargets(ids, row, weights[kept], tail.clamp_min(0))


def test_sampled_loss_and_gradient_are_those_of_the_dense_cross_entropy(student, teacher):
    counts = torch.distributions.Multinomial(20, logits=teacher).sample() / 20
    found = sampled_cross_entropy(student, dense(counts, counts > 0))
    wanted = -(counts * student.log_softmax(-1)).sum(-1).mean()
    assert torch.allclose(found, wanted, atol=1e-6)
    ours = torch.autograd.grad(found * 3, student)[0]
    theirs = torch.autograd.grad(wanted * 3, student)[0]
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_weights_that_do_not_sum_to_one_keep_their_gradient(student, teacher):
    some = dense(teacher.softmax(-1), teacher > 0.5)
    wanted = -(teacher.softmax(-1) * (teacher > 0.5) * student.log_softmax(-1)).sum(-1).mean()
    found = sampled_cross_entropy(student, some)
    (ours,) = torch.autograd.grad(found, student)
    (theirs,) = torch.autograd.grad(wanted, student)
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_sampled_gradient_is_unbiased(student, teacher):
    """Averaged over many draws it is the gradient of the whole KL; plain top-k's is not."""
    whole = torch.autograd.grad(divergence("forward_kl", student, teacher), student)[0]
    counts = torch.distributions.Multinomial(8, logits=teacher).sample((4000,)).mean(0) / 8
    (mean,) = torch.autograd.grad(
        sampled_cross_entropy(student, dense(counts, counts > 0)), student
    )
    p = teacher.softmax(-1)
    top = p >= p.topk(3, dim=-1).values[:, -1:]
    renormalised = p * top / (p * top).sum(-1, keepdim=True)
    biased = torch.autograd.grad(sampled_cross_entropy(student, dense(renormalised, top)), student)
    assert (mean - whole).norm() < 0.05 * whole.norm()
    assert (biased[0] - whole).norm() > 0.1 * whole.norm()


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_buckets_are_a_distribution_of_k_plus_one(student, teacher, name, temperature):
    p, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
    top = p >= p.topk(4, dim=-1).values[:, -1:]
    options = {"temperature": temperature, "beta": 0.3, "skew": 0.2}
    found = bucket_divergence(name, student, dense(p, top), **options)
    merged = [
        torch.cat([d[top].view(N, 4), d[~top].view(N, -1).sum(-1, keepdim=True)], -1)
        for d in (p, q)
    ]
    wanted = temperature**2 * by_loops(name, *(one.detach().log() for one in merged), 0.3, 0.2)
    assert found.item() == pytest.approx(wanted, rel=1e-4)
    assert found <= divergence(name, student, teacher, **options) + 1e-6
    through = divergence(name, merged[1].log(), merged[0].log(), beta=0.3, skew=0.2)
    ours = torch.autograd.grad(found, student, retain_graph=True)[0]
    theirs = torch.autograd.grad(temperature**2 * through, student)[0]
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_all_ids_kept_is_the_whole_divergence(student, teacher):
    everything = dense(teacher.softmax(-1), torch.ones(N, V, dtype=torch.bool))
    for name in ("forward_kl", "jsd"):
        found = bucket_divergence(name, student, everything)
        assert found.item() == pytest.approx(divergence(name, student, teacher).item(), abs=1e-4)


def by_places(q, stored) -> float:
    """ULD of one token by its definition: |p - q| at every sorted place, zeros past an end."""
    p, q = sorted(stored, reverse=True), sorted(q, reverse=True)
    total = 0.0
    for at in range(max(len(p), len(q))):
        total += abs((p[at] if at < len(p) else 0.0) - (q[at] if at < len(q) else 0.0))
    return total


def uld_by_loops(logits, rows, temperature) -> float:
    q = (logits / temperature).softmax(-1).tolist()
    found = [by_places(q[at], stored) for at, stored in enumerate(rows) if stored]
    return temperature**2 * sum(found) / len(found)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_sparse_uld_is_its_definition_and_so_is_its_gradient(temperature):
    # Of another vocabulary: rows of several lengths, one without ids, one longer than the student's
    # vocabulary, and more rows than are in work at a time.
    rows = [[0.5, 0.3], [0.1, 0.7, 0.05], [], [0.02] * 11] * 40
    weights = [weight for row in rows for weight in row]
    row = [at for at, some in enumerate(rows) for _ in some]
    targets = SparseTargets(
        torch.arange(len(weights)) + 1000, torch.tensor(row), torch.tensor(weights), torch.ones(160)
    )
    logits = torch.randn(160, 7, requires_grad=True)
    loss = sparse_uld(logits, targets, temperature=temperature)
    wanted = uld_by_loops(logits.detach().double(), rows, temperature)
    assert loss.item() == pytest.approx(wanted, rel=1e-5)
    (grad,) = torch.autograd.grad(loss, logits)
    assert not grad[2].any()
    for at, column in ((0, 0), (1, 3), (3, 6), (159, 2)):
        sides = []
        for step in (1e-6, -1e-6):
            moved = logits.detach().double()
            moved[at, column] += step
            sides.append(uld_by_loops(moved, rows, temperature))
        assert float(grad[at, column]) == pytest.approx((sides[0] - sides[1]) / 2e-6, abs=1e-7)


def test_sparse_uld_of_all_ids_is_the_whole_one(student):
    other = torch.randn(*student.shape[:-1], student.shape[-1] + 5)
    p = other.flatten(0, -2).softmax(-1)
    whole = torch.ones_like(p, dtype=torch.bool)
    found = sparse_uld(student.flatten(0, -2), dense(p, whole))
    assert found.item() == pytest.approx(uld(student, other).item(), rel=1e-5)


def test_losses_are_float32_under_bfloat16_autocast(student, teacher):
    counts = dense(teacher.softmax(-1), torch.ones(N, V, dtype=torch.bool))
    plain = (divergence("jsd", student, teacher), sampled_cross_entropy(student, counts))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = (divergence("jsd", student, teacher), sampled_cross_entropy(student, counts))
        labels = cross_entropy(student, torch.zeros(N, dtype=torch.int64))
    assert all(torch.equal(a, b) for a, b in zip(plain, cast, strict=True))
    assert labels.dtype == torch.float32


def test_bfloat16_logits_get_a_bfloat16_gradient_of_the_float32_loss(student, teacher):
    half = student.detach().bfloat16().requires_grad_()
    counts = dense(teacher.softmax(-1), torch.ones(N, V, dtype=torch.bool))
    loss = sampled_cross_entropy(half, counts)
    loss.backward()
    assert loss.dtype == torch.float32
    assert half.grad.dtype == torch.bfloat16
    wanted = half.detach().float().requires_grad_()
    sampled_cross_entropy(wanted, counts).backward()
    assert torch.allclose(half.grad.float(), wanted.grad, atol=1e-3)


def test_targets_of_another_number_of_tokens_are_refused(student, teacher):
    targets = dense(teacher.softmax(-1), teacher > 0)
    with pytest.raises(ValueError, match="target tokens"):
        sampled_cross_entropy(student[:-1], targets)
