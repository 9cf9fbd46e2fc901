"""The report of a classifier job: teacher and arms beside one another on the test images."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from services.common.blobs import BlobStore
from services.common.errors import Internal
from services.common.manifest import Manifest
from services.common.predictions import Doubles, Mask, Predictions
from services.common.shards import unpack_rows
from services.common.tensors import unpack_arrays
from services.gateway.jobs.classifier_arms import Fitted, Run
from services.gateway.jobs.classifier_figures import differences, figures
from services.gateway.jobs.classifier_specs import ALONE, OWN_ARM
from services.gateway.jobs.intervals import Estimate
from services.gateway.jobs.job import Job
from services.gateway.jobs.shard_stage import Shards

Report = dict[str, Any]
TEACHER = "teacher"
_OF_THE_MODEL = (
    "architecture",
    "input_px",
    "classes",
    "items",
    "size",
    "latency",
    "no_onnx",
    "settings",
)
"""Parts of a run's report that are those of the job's model."""


@dataclass(frozen=True)
class Measured:
    """What was measured of the test images that teacher and all runs could read."""

    teacher: Predictions
    runs: tuple[Predictions, ...]
    """In the order of the job's runs."""
    reports: tuple[Report, ...]
    """Of the runs."""


async def read_measured(job: Job, test: Manifest, outputs: Shards, runs: Sequence[Run]) -> Measured:
    """Read the outputs of teacher and runs for the test items. Raises Internal for those that do
    not fit."""
    return await asyncio.to_thread(_read, job.tools.blobs, job.project, test, outputs, runs)


def make_report(measured: Measured, fitted: Fitted) -> Report:
    """Return the report as JSON values. Blocking, some seconds for many thousands of images.

    Figures are by metric, then by who: `teacher` and the arms. `paired_alone` is the job's own arm
    minus `alone`.
    """
    arms = _by_arm(fitted["runs"], measured.runs)
    teacher = measured.teacher.logits
    found = {TEACHER: figures([measured.teacher])}
    found |= {name: figures(seeds, teacher) for name, seeds in arms.items()}
    report: Report = {
        "kind": "classifier",
        **_by_metric(found),
        "arms": _arms(fitted, measured.reports),
        "test_images": len(teacher),
        "curves": _curves(fitted["runs"], measured.reports),
        "seconds": sum(float(one.get("seconds") or 0) for one in measured.reports),
    }
    if ALONE in arms:
        report["paired_alone"] = differences(arms[OWN_ARM], arms[ALONE], teacher)
    own = measured.reports[0]
    return report | {name: own[name] for name in _OF_THE_MODEL if name in own}


def _by_arm(runs: Sequence[Run], measured: Sequence[Predictions]) -> dict[str, list[Predictions]]:
    found: dict[str, list[Predictions]] = {}
    for run, one in zip(runs, measured, strict=True):
        found.setdefault(run["arm"], []).append(one)
    return found


def _by_metric(found: Mapping[str, Mapping[str, Estimate]]) -> dict[str, dict[str, Estimate]]:
    metrics = dict.fromkeys(name for some in found.values() for name in some)
    return {
        metric: {who: some[metric] for who, some in found.items() if metric in some}
        for metric in metrics
    }


def _arms(fitted: Fitted, reports: Sequence[Report]) -> list[Report]:
    """Return the seeds, the steps of each and the seconds of all of every arm."""
    found: dict[str, Report] = {}
    for run, report in zip(fitted["runs"], reports, strict=True):
        arm = found.setdefault(run["arm"], {"arm": run["arm"], "seeds": 0, "seconds": 0.0})
        arm["seeds"] += 1
        arm["steps"] = report.get("steps", fitted["steps"])
        arm["seconds"] += float(report.get("seconds") or 0)
    return list(found.values())


def _curves(runs: Sequence[Run], reports: Sequence[Report]) -> list[Report]:
    """Return the points of all learning curves, each with its run: `arm/seed`."""
    return [
        {**point, "run": f"{run['arm']}/{run['seed']}"}
        for run, report in zip(runs, reports, strict=True)
        for point in report.get("curves", [])
    ]


def _read(
    blobs: BlobStore, project: str, test: Manifest, outputs: Shards, runs: Sequence[Run]
) -> Measured:
    shards = [blobs.get(project, digest) for digest in outputs["digests"]]
    teacher, valid = unpack_rows("logits", shards)
    told = [_predicted(blobs.get(project, run["blobs"]["predictions"])) for run in runs]
    rows = [
        at
        for at, item in enumerate(test.items)
        if valid[at] and all(item.digest in one for one in told)
    ]
    hot = _hot(test, rows)

    def of(logits: Doubles) -> Predictions:
        return Predictions(logits, hot, test.multi_label)

    digests = [test.items[at].digest for at in rows]
    shape = (len(rows), len(test.classes))
    return Measured(
        of(teacher[rows].astype(np.float64)),
        tuple(of(np.array([one[d] for d in digests]).reshape(shape)) for one in told),
        tuple(_report(blobs.get(project, run["blobs"]["report"])) for run in runs),
    )


def _predicted(data: bytes) -> dict[str, Doubles]:
    """Return a run's logits [K] of the test images by digest."""
    arrays = unpack_arrays(data, what="predictions")
    logits, digests = arrays["logits"].astype(np.float64), arrays["digests"]
    return {bytes(digest).hex(): row for digest, row in zip(digests, logits, strict=True)}


def _hot(manifest: Manifest, rows: Sequence[int]) -> Mask:
    hot = np.zeros((len(rows), len(manifest.classes)), bool)
    for at, row in enumerate(rows):
        hot[at, list(manifest.items[row].labels)] = True
    return hot


def _report(data: bytes) -> Report:
    try:
        found = json.loads(data)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Internal("the report of the training run is not JSON")
    return found
