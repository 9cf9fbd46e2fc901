"""The demo's report.json: the job reports side by side, with what they cost and the tuning."""

from __future__ import annotations

import json
from typing import Any

from stillhouse.gateway.v1 import jobs_pb2
from stillhouse.student.v1 import student_pb2

from stillhouse_client import sentences
from stillhouse_client.client import AsyncClient
from stillhouse_client.demo import Story, Task, Tuning

CONTENDERS = ("student", "random_control", "random_words", "sparse_probe", "dense_probe")
_DIRECTIONS = {student_pb2.DIRECTION_UP: "up", student_pb2.DIRECTION_DOWN: "down"}


async def build(client: AsyncClient, story: Story, wall_s: float) -> dict[str, Any]:
    """Return the report of a demo run.

    `tasks.coarse` and `tasks.fine` hold the job's own report (counts, `student`, controls and
    probes as `{"value", "low", "high"}`) with the `cache_hits`, `wall_s` and `stage_s` of the jobs.
    """
    tasks = {name: await _task(client, task) for name, task in story.tasks.items()}
    return {
        "tasks": tasks,
        "tuning": tuning(story.tuning) if story.tuning else None,
        "cache_hits": sum(int(task["cache_hits"]) for task in tasks.values()),
        "wall_s": round(wall_s, 2),
        "stage_s": story.step_s,
    }


def tuning(done: Tuning) -> dict[str, Any]:
    """Return a tuning as JSON types."""
    effects = done.response.version.effects
    return {
        "student": done.student,
        "class": done.edit.label,
        "concept": done.edit.concept,
        "direction": _DIRECTIONS[done.edit.direction],
        "factor": done.edit.factor,
        "effects": [
            {
                "class": e.edit.label,
                "concept": e.edit.concept,
                "before": e.weight_before,
                "after": e.weight_after,
                "box": sorted([e.box_low, e.box_high]),
            }
            for e in effects
        ],
        "changes": [
            {
                "metric": c.metric,
                "before": c.before,
                "after": c.after,
                "change": _estimate(c.change),
                "random_change": _estimate(c.random_change),
            }
            for c in done.response.version.changes
        ],
        "flipped_items": done.response.flipped_items,
        "warnings": [*done.response.warnings],
        "undo_exact": done.exact,
        "sentence": sentences.tuned(done.response),
    }


def both_ways(report: dict[str, Any]) -> dict[str, Any]:
    """Return a job's report with the figures at NEC <= 10 in both places where readers look:
    `at_nec_10.student` and `student.at_nec_10`; paired differences as `{"value", "low", "high"}`
    of the fidelity."""
    low = {**(report.get("at_nec_10") or {})}
    made = {**report, "at_nec_10": low}
    for key in (*CONTENDERS, "paired_random"):
        entry = report.get(key)
        if not isinstance(entry, dict):
            continue
        at_ten = low.get(key) or entry.get("at_nec_10")
        entry = _paired(entry) if key == "paired_random" else entry
        if isinstance(at_ten, dict):
            low[key] = _paired(at_ten) if key == "paired_random" else at_ten
            entry = {**entry, "at_nec_10": low[key]}
        made[key] = entry
    return made


def _paired(entry: dict[str, Any]) -> dict[str, Any]:
    return {**entry["fidelity"], **entry} if "fidelity" in entry else entry


async def _task(client: AsyncClient, task: Task) -> dict[str, Any]:
    report = both_ways(json.loads(await client.blobs.read(task.concept_job.report.digest)))
    jobs = {"teacher_head": task.head_job, "concept": task.concept_job}
    return {
        **report,
        "dataset": task.dataset.name,
        "classes": [*task.dataset.classes],
        "teacher": task.head_job.model,
        "student_version": task.concept_job.student_version,
        "cache_hits": sum(stage.cache_hits for stage in task.concept_job.stages),
        "wall_s": round(sum(_wall_s(job) for job in jobs.values()), 3),
        "stage_s": {
            f"{kind}.{stage.stage}": round(stage.elapsed_s, 3)
            for kind, job in jobs.items()
            for stage in job.stages
        },
        "this_run_s": round(task.wall_s, 3),
    }


def _wall_s(job: jobs_pb2.DistillationJob) -> float:
    start, end = job.create_time, job.end_time
    if not end.seconds:
        return 0.0
    return float(end.seconds - start.seconds) + (end.nanos - start.nanos) / 1e9


def _estimate(value: student_pb2.Estimate) -> dict[str, float]:
    return {"value": value.value, "low": value.low, "high": value.high}
