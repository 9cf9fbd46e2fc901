"""The tables of a prune job's report: its size, the candidates, and what every arm learned."""

from __future__ import annotations

from typing import Any

from stillhouse_client import job_report
from stillhouse_client.commands import output
from stillhouse_client.commands.figures import count, figure


def print_prune(report: dict[str, Any]) -> None:
    """Print size, candidates, arms, and what the arms have beyond each control."""
    _print_size(report)
    _print_candidates(report)
    _print_rounds(report)
    _print_arms(report)
    for control, metrics in job_report.gains(report).items():
        for metric, value in metrics.items():
            name = job_report.metric_name(metric)
            output.say(f"against {job_report.arm_name(control)}, paired  {name}: {figure(value)}")


def _print_size(report: dict[str, Any]) -> None:
    size = report.get("size")
    if not isinstance(size, dict):
        return
    asked = ", ".join(f"{k.replace('_', ' ')} {v:,g}" for k, v in (size.get("asked") or {}).items())
    got = size.get("got") or {}
    share = job_report.number(got.get("non_embedding_share"))
    rows = [("asked for", asked), ("parameters", count(got.get("parameters")))]
    rows += [("outside the embeddings", "-" if share is None else f"{share:.1%} stay")]
    rows += [("weights", output.size(int(got.get("bytes") or 0)))]
    output.pairs([*rows, *_latency(got, size.get("measured_on"))])


def _latency(got: dict[str, Any], on: Any) -> list[tuple[str, str]]:
    """Return what a pass takes and on what, where the size is one of time."""
    latency_ms = job_report.number(got.get("latency_ms"))
    if latency_ms is None or not isinstance(on, dict):
        return []
    whole = job_report.number(on.get("whole_model_ms"))
    before = "" if whole is None else f" (the whole model {whole:.4g} ms)"
    where = f"{on.get('tokens')} tokens, {on.get('precision')}, {on.get('device_name')}"
    return [
        ("a pass", f"{latency_ms:.4g} ms{before}"),
        ("measured on", f"{where}, {on.get('threads')} threads"),
    ]


def _print_candidates(report: dict[str, Any]) -> None:
    rows = [
        (
            "taken" if one.chosen else "",
            one.kind,
            *(count(one.shape.get(name)) for name in job_report.SIZES),
            count(one.shape.get("parameters")),
            f"{one.prior_cost:.4g}",
            "-" if one.cross_entropy is None else f"{one.cross_entropy:.3f}",
        )
        for one in job_report.candidates(report)
    ]
    sizes = [f"#{name.replace('_', ' ')}" for name in job_report.SIZES]
    if rows:
        heads = ["candidate", "cuts", *sizes, "#parameters", "#prior cost", "#cross-entropy"]
        output.table(heads, rows)


def _print_rounds(report: dict[str, Any]) -> None:
    rows = [
        (
            str(one.number),
            "-" if one.share is None else f"{one.share:.1%}",
            *(count(one.shape.get(name)) for name in job_report.SIZES),
            count(one.steps),
            figure(one.before.get("cross_entropy")),
            figure(one.after.get("cross_entropy")),
        )
        for one in job_report.hops(report)
    ]
    sizes = [f"#{name.replace('_', ' ')}" for name in job_report.SIZES]
    if rows:
        output.table(["round", "#stays", *sizes, "#steps", "#before", "#after"], rows)


def _print_arms(report: dict[str, Any]) -> None:
    arms = job_report.arms(report)
    metrics = job_report.metrics_of(arms)
    rows = [
        (arm.name, count(arm.tokens), *(figure(arm.metrics.get(metric)) for metric in metrics))
        for arm in arms
    ]
    columns = [f"#{job_report.metric_name(metric)}" for metric in metrics]
    if rows:
        output.table(["model", "#tokens", *columns], rows)
