"""What is printed of a job: its state and stages, and the tables of its report."""

from __future__ import annotations

from typing import Any

import typer
from stillhouse.gateway.v1 import jobs_pb2 as pb

from stillhouse_client import job_report, names
from stillhouse_client.commands import output
from stillhouse_client.commands.figures import count, figure
from stillhouse_client.commands.prune_tables import print_prune
from stillhouse_client.commands.session import EXIT_FAILED
from stillhouse_client.jobs import FINAL, check_outcome, waits_for_review

STATES = {
    pb.JOB_STATE_QUEUED: "queued",
    pb.JOB_STATE_RUNNING: "running",
    pb.JOB_STATE_SUCCEEDED: "succeeded",
    pb.JOB_STATE_FAILED: "failed",
    pb.JOB_STATE_CANCELLING: "being cancelled",
    pb.JOB_STATE_CANCELLED: "cancelled",
}


def print_job(
    job: pb.DistillationJob, report: dict[str, Any] | None = None, *, as_json: bool = False
) -> None:
    """Print a job, and the tables of its report where one is given."""
    if as_json:
        output.print_json(job)
        return
    rows = [("job", job.name), ("kind", kind_of(job)), ("state", STATES.get(job.state, "?"))]
    rows += [("from", source_of(job))] if source_of(job) else []
    rows += [("student", job.student_version)] if job.student_version else []
    rows += [("model", job.model)] if job.model else []
    rows += [("error", job.error.message)] if job.error.message else []
    output.pairs(rows)
    stages = [
        (s.stage, _count(s), s.unit, str(s.cache_hits or ""), output.seconds(s.elapsed_s))
        for s in job.stages
    ]
    if stages:
        output.table(["stage", "#done", "unit", "#from cache", "#time"], stages)
    if report is not None:
        print_report(report)
    if waits_for_review(job):
        print_review(job.name)


def print_review(name: str) -> None:
    """Say how to review the samples of a job that waits for it."""
    job = names.last(name)
    output.note(f"it waits for your review: look with `stillhouse jobs samples {job}`,")
    output.note(f"then train with what is kept: `stillhouse jobs samples {job} --finish`")


def print_report(report: dict[str, Any]) -> None:
    """Print the tables of a job's report."""
    if report.get("kind") == "prune":
        print_prune(report)
        return
    if report.get("kind") == "classifier":
        _print_classifier(report)
        return
    if "arms" in report:
        _print_arms(report)
        _print_paired(report)
        _print_rounds(report)
        return
    found = job_report.measures(report)
    parts = ["before", "after", "change"]
    parts += ["teacher"] if any(one.teacher for one in found) else []
    rows = [
        (job_report.metric_name(one.metric), *(figure(getattr(one, part)) for part in parts))
        for one in found
    ]
    if rows:
        output.table(["measure", *(f"#{part}" for part in parts)], rows)


def require_success(job: pb.DistillationJob, *, as_json: bool) -> None:
    """End the command with exit code 1 where the job failed or was cancelled.

    With --json the job itself, already printed, is the one document that says why.
    """
    if not as_json:
        check_outcome(job)
    elif job.state in FINAL and job.state != pb.JOB_STATE_SUCCEEDED:
        raise typer.Exit(EXIT_FAILED)


def kind_of(job: pb.DistillationJob) -> str:
    """Return a job's kind for people."""
    return (job.WhichOneof("spec") or "?").replace("_", " ")


def source_of(job: pb.DistillationJob) -> str:
    """Return what a job learns from: a dataset, with a teacher, or a tuned model."""
    kind = job.WhichOneof("spec")
    if kind == "tuneshift":
        return f"{names.last(job.tuneshift.tuned)} into {names.last(job.tuneshift.target)}"
    if kind == "language":
        teacher = names.last(job.language.teacher)
        dataset = names.last(job.language.dataset)
        return f"{dataset}, {teacher}" if teacher else dataset
    if kind == "prune":
        return f"{names.last(job.prune.dataset)}, {names.last(job.prune.model)}"
    if kind == "classifier":
        return f"{names.last(job.classifier.dataset)}, {names.last(job.classifier.teacher)}"
    spec = job.concept if kind == "concept" else job.teacher_head
    return names.last(spec.dataset)


def _print_arms(report: dict[str, Any]) -> None:
    arms = job_report.arms(report)
    metrics = job_report.metrics_of(arms)
    rows = [
        (
            arm.name,
            count(arm.examples),
            count(arm.tokens),
            *(figure(arm.metrics.get(metric)) for metric in metrics),
        )
        for arm in arms
    ]
    columns = [f"#{job_report.metric_name(metric)}" for metric in metrics]
    if rows:
        output.table(["trained on", "#examples", "#tokens", *columns], rows)


def _print_classifier(report: dict[str, Any]) -> None:
    arms = job_report.arms(report)
    metrics = job_report.metrics_of(arms)
    columns = [f"#{job_report.metric_name(metric)}" for metric in metrics]
    rows = [(arm.name, *(figure(arm.metrics.get(metric)) for metric in metrics)) for arm in arms]
    output.table(["learned from", *columns], rows)
    for metric, gain in job_report.paired_alone(report).items():
        name = job_report.metric_name(metric)
        output.say(f"teacher and labels beyond labels alone, paired  {name}: {figure(gain)}")
    size, latency = report.get("size") or {}, report.get("latency") or {}
    output.pairs(
        [
            ("parameters", _number(size.get("parameters"))),
            ("weights", output.size(int(job_report.number(size.get("weights_bytes")) or 0))),
            ("one image", _milliseconds(latency.get("median_ms"))),
            ("one image, ONNX", _milliseconds(latency.get("onnx_median_ms"))),
        ]
    )


def _print_paired(report: dict[str, Any]) -> None:
    for metric, gain in job_report.paired(report).items():
        name = job_report.metric_name(metric)
        output.say(f"filter beyond random filter, paired  {name}: {figure(gain)}")
    if found := job_report.coverage(report):
        output.say(f"kept prompts are about {found[0]} of {found[1]} groups of questions")


def _print_rounds(report: dict[str, Any]) -> None:
    rows = [
        (
            str(r.number),
            str(r.prompts),
            str(r.kept),
            _share(r.in_domain),
            _share(r.off_domain),
        )
        for r in job_report.rounds(report)
    ]
    if rows:
        output.table(["round", "#prompts", "#kept", "#in the domain", "#outside"], rows)
    counts = report.get("tau_counts")
    if isinstance(counts, dict) and counts:
        kept = ", ".join(f"{tau}: {count(number)}" for tau, number in counts.items())
        output.say(f"each tau would keep  {kept}")


def _share(counts: tuple[int, int]) -> str:
    kept, asked = counts
    return f"{kept} of {asked}" if asked else "-"


def _milliseconds(value: Any) -> str:
    found = job_report.number(value)
    return "-" if found is None else f"{found:.2f} ms"


def _number(count: Any) -> str:
    value = job_report.number(count)
    return "-" if value is None else f"{value:,.0f}"


def _count(stage: pb.JobStage) -> str:
    if stage.total and stage.total != stage.done:
        return f"{stage.done} of {stage.total}"
    return str(stage.done) if stage.done else ("yes" if stage.complete else "")
