"""The tuneshift demo's `tuneshift.json`: the figures of the job's report under fixed names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from stillhouse_client.client import AsyncClient
from stillhouse_client.tuneshift_demo import TuneShiftPlan, TuneShiftStory

Figure = dict[str, Any]
_ARMS = ("tuneshift", "no_filter", "random_filter", "seeds_only")
_ACCURACY, _ENTROPY = "choice_accuracy", "cross_entropy"


async def build(
    client: AsyncClient, story: TuneShiftStory, plan: TuneShiftPlan, wall_s: float
) -> dict[str, Any]:
    """Return the summary of a run; `report` in it is the job's own report."""
    job = story.jobs["tuneshift"]
    report = json.loads(await client.blobs.read(job.report.digest))
    return {
        **summary(report),
        "plan": {"facts": plan.facts, "training_seeds": plan.seeds, "epochs": plan.epochs},
        "models": {step: done.model for step, done in story.jobs.items()},
        "wall_s": round(wall_s, 1),
        "step_s": story.step_s,
        "report": report,
    }


def summary(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of a tuneshift report: accuracies of questions as `{value, low, high}`
    over training seeds and questions, keep rates, coverage, and cross-entropy of general text."""
    arms = {arm["arm"]: arm for arm in report["arms"]}
    references = report.get("references", {})
    accuracy = {
        "base": _pick(references.get("base", {}), _ACCURACY),
        "tuned": _pick(references.get("tuned", {}), _ACCURACY),
        "target_before": _pick(report["before"], _ACCURACY),
        **{name: _pick(arms[name]["metrics"], _ACCURACY) for name in _ARMS if name in arms},
    }
    before = _pick(report["before"], _ENTROPY)
    after = {name: _pick(arms[name]["metrics"], _ENTROPY) for name in _ARMS if name in arms}
    return {
        "accuracy": accuracy,
        "recovered": recovered(accuracy),
        "paired_random": _pick(report.get("paired_random", {}), _ACCURACY),
        "keep_rate": [one["kept"] / max(one["prompts"], 1) for one in report["rounds"]],
        "fact_coverage": report.get("fact_coverage"),
        "general_ce": {
            "before": before,
            "after": after.get("tuneshift"),
            "rise": _rise(before, after.get("tuneshift")),
            "arms": after,
        },
        "tau_counts": report.get("tau_counts"),
    }


def recovered(accuracy: Mapping[str, Figure | None]) -> float | None:
    """Return what share of the tuned model's advantage over the base the target has after the job:
    (tuneshift - base) / (tuned - base)."""
    values = [(accuracy.get(name) or {}).get("value") for name in ("base", "tuned", "tuneshift")]
    base, tuned, after = values
    if base is None or tuned is None or after is None or tuned <= base:
        return None
    return float((after - base) / (tuned - base))


def _pick(metrics: Mapping[str, Any], name: str) -> Figure | None:
    """Return a metric's figure, of the job's own data or of a further dataset (`data/metric`)."""
    found = [figure for key, figure in metrics.items() if key.rpartition("/")[2] == name]
    return found[0] if found else None


def _rise(before: Figure | None, after: Figure | None) -> float | None:
    if not before or not after or before.get("value") is None or after.get("value") is None:
        return None
    return float(after["value"] / before["value"] - 1)
