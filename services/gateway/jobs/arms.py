"""What the arms of a job measured beside one another: means with intervals, changes, and curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from services.gateway.jobs.intervals import Estimate, Table, difference, estimate, table

Report = dict[str, Any]
"""The report of a training run, or of a job."""
Tables = dict[str, Table]
"""What was measured, by metric."""


class Run(TypedDict):
    """One training run: its arm, the number of its seed, and the digest of its report."""

    arm: str
    seed: int
    report: str
    examples: int
    tokens: int


def arm_reports(
    runs: Sequence[Run], reports: Mapping[str, Report], untrained: Report | None
) -> tuple[list[Report], dict[str, Tables]]:
    """Return (what each arm measured, its tables), the arms in the order of their first runs.

    `reports` holds the reports of the runs by digest. `untrained` is that of the model that all
    arms start from; where it is None, every run has measured its own start. Intervals are over
    training seeds and groups of questions.
    """
    arms: dict[str, list[Run]] = {}
    for run in runs:
        arms.setdefault(run["arm"], []).append(run)
    found, tables = [], {}
    for name, mine in arms.items():
        its = [reports[run["report"]] for run in mine]
        starts = its if untrained is None else [untrained] * len(its)
        tables[name] = tables_of(its, "after")
        found.append(
            {
                "arm": name,
                "examples": mine[0]["examples"],
                "tokens": mine[0]["tokens"],
                "seeds": len(mine),
                "steps": its[0].get("steps"),
                "trained_tokens": sum(int(one.get("trained_tokens") or 0) for one in its),
                "seconds": sum(float(one.get("seconds") or 0) for one in its),
                "metrics": {metric: estimate(one) for metric, one in tables[name].items()},
                "change": paired_tables(tables[name], tables_of(starts, "before")),
            }
        )
        if untrained is None:
            found[-1]["before"] = figures_of(its, "before")
    return found, tables


def figures_of(reports: Sequence[Report], when: str) -> dict[str, Estimate]:
    """Return the means of the metrics that all runs measured, `before` or `after`."""
    return {name: estimate(found) for name, found in tables_of(reports, when).items()}


def tables_of(reports: Sequence[Report], when: str) -> Tables:
    """Return the tables of the metrics that all runs measured, `before` or `after`."""
    measured = [report.get("items", {}).get(when, {}) for report in reports]
    shared = [name for name in measured[0] if all(name in one for one in measured)]
    return {name: table([one[name] for one in measured]) for name in shared}


def paired(tables: Mapping[str, Tables], one: str, other: str) -> dict[str, Estimate]:
    """Return the difference of two arms in every metric, paired by seed and question."""
    if one not in tables or other not in tables:
        return {}
    return paired_tables(tables[one], tables[other])


def paired_tables(first: Tables, second: Tables) -> dict[str, Estimate]:
    """Return `first` minus `second` in every metric that both have of equally many runs and
    groups."""
    return {
        name: difference(found, second[name])
        for name, found in first.items()
        if name in second and found.values.shape == second[name].values.shape
    }


def curves_of(runs: Sequence[Run], reports: Mapping[str, Report]) -> list[Report]:
    """Return the points of all learning curves, each with its run: `arm/seed`."""
    return [
        {**point, "run": f"{run['arm']}/{run['seed']}"}
        for run in runs
        for point in reports[run["report"]].get("curves", [])
    ]
