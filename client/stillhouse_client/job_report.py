"""The JSON report of a job as rows and series; missing parts stay out."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from stillhouse.gateway.v1 import jobs_pb2 as pb

from stillhouse_client.client import AsyncClient

Figure = dict[str, Any]
"""`{"value", "low", "high"}` with a 95 % interval, or `{"value": null, "reason"}`."""
KINDS = ("language", "tuneshift", "prune", "classifier")
SIZES = ("layers", "hidden_size", "intermediate_size", "attention_heads")
"""Sizes of a pruned model, as its report names them."""
OWN_ARM = "tuneshift"
_BY_ARM = ("accuracy", "negative_log_likelihood", "expected_calibration_error", "agreement")
"""Metrics that the report of a classifier job has by arm."""
_METRICS = {
    "cross_entropy": "cross-entropy (nats a token)",
    "kl_to_teacher": "KL to the teacher",
    "top1_agreement": "agrees with the teacher's first choice",
    "choice_accuracy": "right choices",
    "choice_accuracy_sum": "right choices (summed)",
    "task_accuracy": "right answers",
    "negative_log_likelihood": "negative log-likelihood (nats)",
    "expected_calibration_error": "calibration error",
    "agreement": "agrees with the teacher",
}
_ARMS = {
    OWN_ARM: "the job's examples",
    "no_filter": "no filter",
    "random_filter": "random filter",
    "seeds_only": "seeds only",
    "style": "style model's examples",
    "prune": "the cut, distilled",
    "no_distillation": "the cut without distillation",
    "one_round": "the same size cut at once",
    "random_cut": "random cut",
    "random_weights": "random weights",
    "soft_hard": "teacher and labels",
    "alone": "labels alone",
    "soft": "teacher alone",
}


@dataclass(frozen=True)
class Measure:
    """One metric before and after training."""

    metric: str
    before: Figure | None
    after: Figure | None
    change: Figure | None
    teacher: Figure | None


@dataclass(frozen=True)
class Arm:
    """What one set of examples gave; `examples` and `tokens` are None for a model as it is."""

    name: str
    examples: int | None
    tokens: int | None
    metrics: dict[str, Figure]
    change: dict[str, Figure]


@dataclass(frozen=True)
class Round:
    """What one round of a tuneshift job kept."""

    number: int
    prompts: int
    kept: int
    in_domain: tuple[int, int]
    """Kept, and all, of the prompts in the domain."""
    off_domain: tuple[int, int]


@dataclass(frozen=True)
class Candidate:
    """A cut of the size that a prune job was asked for."""

    kind: str
    shape: dict[str, Any]
    prior_cost: float
    cross_entropy: float | None
    """Held-out, after its short training; None where it had none."""
    chosen: bool


@dataclass(frozen=True)
class Hop:
    """A round of pruning and training: what was left, and what that measured."""

    number: int
    shape: dict[str, Any]
    share: float | None
    """Of the whole model's parameters outside the embeddings."""
    steps: int
    before: dict[str, Figure]
    after: dict[str, Figure]


@dataclass(frozen=True)
class Histogram:
    """Samples by mean log-probability gained per token."""

    edges: list[float]
    in_domain: list[float]
    off_domain: list[float]
    threshold: float | None


async def read(client: AsyncClient, job: pb.DistillationJob) -> dict[str, Any] | None:
    """Return the report of a job; None where there is none."""
    if job.WhichOneof("spec") not in KINDS or not job.report.digest:
        return None
    found = json.loads(await client.blobs.read(job.report.digest))
    return found if isinstance(found, dict) else None


def measures(report: dict[str, Any]) -> list[Measure]:
    """Return the metrics of a language job, the job's own data first."""
    parts = {part: _figures(report.get(part)) for part in ("before", "after", "change", "teacher")}
    names = dict.fromkeys(name for part in parts.values() for name in part)
    return [
        Measure(name, *(parts[part].get(name) for part in ("before", "after", "change", "teacher")))
        for name in sorted(names, key=lambda name: "/" in name)
    ]


def arms(report: dict[str, Any]) -> list[Arm]:
    """Return the target, or cut, before training, the job's arms, then the models it was made
    from."""
    if report.get("kind") == "classifier":
        return _classifier_arms(report)
    found = []
    if before := _figures(report.get("before")):
        start = "the cut before" if report.get("kind") == "prune" else "target before"
        found.append(Arm(start, None, None, before, {}))
    for arm in _dicts(report.get("arms")):
        found.append(
            Arm(
                arm_name(str(arm.get("arm", "?"))),
                _count(arm.get("examples")),
                _count(arm.get("tokens")),
                _figures(arm.get("metrics")),
                _figures(arm.get("change")),
            )
        )
    for name, metrics in (report.get("references") or {}).items():
        found.append(Arm(f"{name} model", None, None, _figures(metrics), {}))
    return found


def paired(report: dict[str, Any]) -> dict[str, Figure]:
    """Return by metric how much the filter's examples gave beyond the random filter's, paired."""
    return _figures(report.get("paired_random"))


def gains(report: dict[str, Any]) -> dict[str, dict[str, Figure]]:
    """Return by control, then metric, what a prune job's own arm has beyond it, paired."""
    raw = report.get("paired")
    return {str(k): _figures(v) for k, v in raw.items()} if isinstance(raw, dict) else {}


def candidates(report: dict[str, Any]) -> list[Candidate]:
    """Return the cuts that a prune job could choose from, the likeliest first."""
    return [
        Candidate(
            str(one.get("kind", "?")),
            one["shape"] if isinstance(one.get("shape"), dict) else {},
            number(one.get("prior_cost")) or 0.0,
            number(one.get("cross_entropy")),
            one.get("chosen") is True,
        )
        for one in _dicts(report.get("candidates"))
    ]


def hops(report: dict[str, Any]) -> list[Hop]:
    """Return the rounds of a prune job that cut in several."""
    if report.get("kind") != "prune":
        return []
    return [
        Hop(
            _count(one.get("round")) or at,
            one["shape"] if isinstance(one.get("shape"), dict) else {},
            number(one.get("non_embedding_share")),
            _count(one.get("steps")) or 0,
            _figures(one.get("before")),
            _figures(one.get("after")),
        )
        for at, one in enumerate(_dicts(report.get("rounds")), 1)
    ]


def paired_alone(report: dict[str, Any]) -> dict[str, Figure]:
    """Return by metric how much teacher and labels gave beyond labels alone, paired."""
    return _figures(report.get("paired_alone"))


def coverage(report: dict[str, Any]) -> tuple[int, int] | None:
    """Return how many groups of questions the kept prompts are about, of how many; or None."""
    raw = report.get("fact_coverage")
    if not isinstance(raw, dict):
        return None
    groups = _count(raw.get("groups"))
    return (_count(raw.get("covered")) or 0, groups) if groups else None


def rounds(report: dict[str, Any]) -> list[Round]:
    """Return what each round of a tuneshift job kept."""
    if report.get("kind") == "prune":
        return []
    return [
        Round(
            _count(one.get("round")) or at,
            _count(one.get("prompts")) or 0,
            _count(one.get("kept")) or 0,
            (_count(one.get("in_domain_kept")) or 0, _count(one.get("in_domain")) or 0),
            (_count(one.get("off_domain_kept")) or 0, _count(one.get("off_domain")) or 0),
        )
        for at, one in enumerate(_dicts(report.get("rounds")), 1)
    ]


def histogram(report: dict[str, Any]) -> Histogram | None:
    """Return how the gained log-probability is spread, or None."""
    raw = report.get("gap_histogram") or {}
    edges = [float(edge) for edge in raw.get("edges") or ()]
    inside = [float(n) for n in raw.get("in_domain") or ()]
    outside = [float(n) for n in raw.get("off_domain") or ()] or [0.0] * len(inside)
    if len(edges) < 2 or not len(edges) - 1 == len(inside) == len(outside):
        return None
    return Histogram(edges, inside, outside, number(raw.get("threshold")))


def curves(report: dict[str, Any]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Return (step, value) points by training run and series, such as `loss`, by step."""
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for point in sorted(_dicts(report.get("curves")), key=lambda p: number(p.get("step")) or 0):
        step, run = number(point.get("step")), str(point.get("run") or "")
        for series, raw in point.items():
            value = number(raw)
            if series in ("step", "run") or step is None or value is None:
                continue
            found.setdefault(run, {}).setdefault(series, []).append((step, value))
    return found


def metric_name(metric: str) -> str:
    """Return a metric for people: `right choices`, or `right choices of stamps`."""
    dataset, _, name = metric.rpartition("/")
    words = _METRICS.get(name, name.replace("_", " "))
    return f"{words} of {dataset}" if dataset else words


def arm_name(arm: str) -> str:
    """Return an arm for people."""
    if arm.startswith("tau_"):
        return f"tau {arm.removeprefix('tau_')}"
    return _ARMS.get(arm, arm.replace("_", " "))


def run_name(run: str) -> str:
    """Return a training run, `arm/seed`, for people."""
    arm, _, seed = run.partition("/")
    return f"{arm_name(arm)}, seed {seed}" if seed else arm_name(arm)


def metrics_of(found: Sequence[Arm]) -> list[str]:
    """Return the metrics that any arm has: shares of right answers first."""
    names = dict.fromkeys(name for arm in found for name in arm.metrics)
    return sorted(names, key=lambda name: (not name.endswith("accuracy"), "/" in name))


def number(value: Any) -> float | None:
    """Return a finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _classifier_arms(report: dict[str, Any]) -> list[Arm]:
    """Return the teacher, then the job's arms, its own first; `examples` are training images."""
    images = _count((report.get("items") or {}).get("train"))
    by_metric = {metric: _figures(report.get(metric)) for metric in _BY_ARM}
    names = ["teacher", *(str(one.get("arm", "?")) for one in _dicts(report.get("arms")))]
    return [
        Arm(
            arm_name(name),
            None if name == "teacher" else images,
            None,
            {metric: found[name] for metric, found in by_metric.items() if name in found},
            {},
        )
        for name in names
    ]


def _figures(raw: Any) -> dict[str, Figure]:
    if not isinstance(raw, dict):
        return {}
    return {
        str(name): figure if isinstance(figure, dict) else {"value": number(figure)}
        for name, figure in raw.items()
    }


def _dicts(raw: Any) -> Iterator[dict[str, Any]]:
    yield from (one for one in raw or () if isinstance(one, dict))


def _count(raw: Any) -> int | None:
    value = number(raw)
    return None if value is None else int(value)
