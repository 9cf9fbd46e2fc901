"""The report of a tuneshift job: what was kept, and what every arm learned beside its controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from services.gateway.jobs.intervals import Estimate, Table, difference, estimate, table
from services.gateway.jobs.tuneshift_figures import (
    Sample,
    gap_histogram,
    is_kept,
    round_figures,
    tau_counts,
)
from services.gateway.jobs.tuneshift_filter import Filter

Report = dict[str, Any]
_BUDGET = (
    "every arm takes the same number of optimizer steps of the same number of sequences; "
    "random_filter is drawn until it has as many answer tokens as the job's own examples; "
    "no_filter is the whole pool, gone through fewer times"
)


class Run(TypedDict):
    """One training run: its arm, the number of its seed, and the digest of its report."""

    arm: str
    seed: int
    report: str
    examples: int
    tokens: int


def arm_reports(
    runs: Sequence[Run], reports: Mapping[str, Report], untrained: Report
) -> tuple[list[Report], dict[str, Estimate], dict[str, Estimate]]:
    """Return (what each arm measured, the untrained target, tuneshift minus random_filter).

    `reports` holds the reports of the runs by digest, `untrained` is that of the target as it was.
    Intervals are over training seeds and groups of questions.
    """
    arms: dict[str, list[Run]] = {}
    for run in runs:
        arms.setdefault(run["arm"], []).append(run)
    start = _tables([untrained], "before")
    before = {name: estimate(found) for name, found in start.items()}
    found, tables = [], {}
    for name, mine in arms.items():
        its = [reports[run["report"]] for run in mine]
        after, again = _tables(its, "after"), _tables([untrained] * len(its), "before")
        tables[name] = after
        found.append(
            {
                "arm": name,
                "examples": mine[0]["examples"],
                "tokens": mine[0]["tokens"],
                "seeds": len(mine),
                "steps": its[0].get("steps"),
                "trained_tokens": sum(int(one.get("trained_tokens") or 0) for one in its),
                "seconds": sum(float(one.get("seconds") or 0) for one in its),
                "metrics": {metric: estimate(one) for metric, one in after.items()},
                "change": {
                    metric: difference(one, again[metric])
                    for metric, one in after.items()
                    if metric in again
                },
            }
        )
    return found, before, _paired(tables, "tuneshift", "random_filter")


def make_report(
    rounds: Sequence[Sequence[Sample]],
    settings: Filter,
    runs: Sequence[Run],
    reports: Mapping[str, Report],
    references: Mapping[str, Report],
    *,
    coverage: Mapping[str, Any],
    extra: Mapping[str, Any],
) -> Report:
    """Return the whole report as JSON values. Blocking, some seconds for thousands of examples.

    `reports` holds the reports of the runs by digest; `references` those of models that were only
    measured: `target` as it was, `base`, `tuned`.
    """
    pool = [one for samples in rounds for one in samples]
    arms, before, paired = arm_reports(runs, reports, references.get("target", {}))
    others = {role: found for role, found in references.items() if role != "target"}
    return {
        "kind": "tuneshift",
        "before": before,
        "arms": arms,
        "paired_random": paired,
        "references": {role: found.get("before", {}) for role, found in others.items()},
        "rounds": [round_figures(at, samples) for at, samples in enumerate(rounds, start=1)],
        "gap_histogram": gap_histogram(pool, settings.gap_threshold),
        "tau_counts": tau_counts(rounds, settings),
        "keep_rate": sum(map(is_kept, pool)) / max(len(pool), 1),
        "fact_coverage": dict(coverage),
        "curves": curves_of(runs, reports),
        "budget": _BUDGET,
        "seconds": sum(arm["seconds"] for arm in arms),
        **extra,
    }


def curves_of(runs: Sequence[Run], reports: Mapping[str, Report]) -> list[Report]:
    """Return the points of all learning curves, each with its run: `arm/seed`."""
    return [
        {**point, "run": f"{run['arm']}/{run['seed']}"}
        for run in runs
        for point in reports[run["report"]].get("curves", [])
    ]


def _tables(reports: Sequence[Report], when: str) -> dict[str, Table]:
    """Return the tables of the metrics that all runs measured."""
    measured = [report.get("items", {}).get(when, {}) for report in reports]
    shared = [name for name in measured[0] if all(name in one for one in measured)]
    return {name: table([one[name] for one in measured]) for name in shared}


def _paired(tables: Mapping[str, Mapping[str, Table]], one: str, other: str) -> dict[str, Estimate]:
    """Return the difference of two arms in every metric, paired by seed and question."""
    if one not in tables or other not in tables:
        return {}
    pairs = {name: (found, tables[other].get(name)) for name, found in tables[one].items()}
    return {
        name: difference(found, second)
        for name, (found, second) in pairs.items()
        if second is not None and found.values.shape == second.values.shape
    }
