"""The report of a tuneshift job: what was kept, and what every arm learned beside its controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from services.gateway.jobs.arms import Report, Run, arm_reports, curves_of, figures_of, paired
from services.gateway.jobs.tuneshift_figures import (
    Sample,
    gap_histogram,
    is_kept,
    round_figures,
    tau_counts,
)
from services.gateway.jobs.tuneshift_filter import Filter

_BUDGET = (
    "every arm takes the same number of optimizer steps of the same number of sequences; "
    "random_filter is drawn until it has as many answer tokens as the job's own examples; "
    "no_filter is the whole pool, gone through fewer times"
)


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
    untrained = references.get("target", {})
    arms, tables = arm_reports(runs, reports, untrained)
    others = {role: found for role, found in references.items() if role != "target"}
    return {
        "kind": "tuneshift",
        "before": figures_of([untrained], "before"),
        "arms": arms,
        "paired_random": paired(tables, "tuneshift", "random_filter"),
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
