"""The report of a prune job: what was cut, what else could be, and what every arm learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stillhouse.gateway.v1 import jobs_pb2 as pb

from services.common.errors import Internal
from services.gateway.jobs.arms import Report, Run, arm_reports, curves_of, paired
from services.gateway.jobs.plans import (
    PruneCandidate,
    PruneChoice,
    PruneCuts,
    PruneRound,
    RankedCut,
    Targets,
)
from services.gateway.jobs.prune_round_reports import (
    candidate_reports,
    named,
    round_curves,
    round_reports,
)
from services.gateway.jobs.prune_specs import BYTES, OWN_ARM, controls_of, size_of
from services.gateway.jobs.targets import target_figures

_BUDGET = (
    "every arm takes the same number of optimizer steps of the same sequences, with the same "
    "stored targets; no_distillation learns their text alone; random_cut keeps as many parts, by "
    "chance; random_weights has the shape alone. Candidates are ranked on the held-out texts that "
    "the arms are measured on"
)
_ROUNDS = (
    "; the job's own arm shares these steps among its rounds: its steps, tokens and seconds are of "
    "all rounds together, what it measured before training is of the last; its rounds before the "
    "last are trained once, with the first seed; controls are cut out of the whole model at once"
)


def make_report(
    spec: pb.PruneJobSpec,
    cuts: PruneCuts,
    choice: PruneChoice,
    rounds: Sequence[PruneRound],
    runs: Sequence[Run],
    *,
    reports: Mapping[str, Report],
    importance: Report,
    full: Report,
    correction: Report,
    stored: Targets | None,
) -> Report:
    """Return the whole report as JSON values.

    `reports` holds the reports of runs, rounds and candidates by digest, `importance` is that of
    the whole model's, `full` what the whole model measured, `correction` that of its training
    before, empty where there was none. `before`, `after` and `change` are of the job's own arm.
    """
    arms, tables = arm_reports(runs, reports, None)
    own, chosen = arms[0], cuts["candidates"][choice["number"]]
    told = round_reports(rounds, cuts, choice, own, reports)
    for name in ("steps", "trained_tokens", "seconds"):
        own[name] = sum(one[name] for one in told)
    choices = [*(one["choice"] for one in rounds), choice]
    ranked = [reports[one["report"]] for made in choices for one in made["ranked"]]
    return {
        "kind": "prune",
        "size": _size(spec, chosen, importance),
        "cut": {**chosen, "from_shape": importance.get("shape", {})},
        "candidates": candidate_reports(cuts, choice),
        "rounds": told if rounds else [],
        "before": own["before"],
        "after": own["metrics"],
        "change": own["change"],
        "arms": arms,
        "paired": {
            name: paired(tables, OWN_ARM, name) for name in controls_of(spec) if name in tables
        },
        "references": _references(full, correction),
        "curves": [
            *named("teacher", correction),
            *round_curves(rounds, reports),
            *(one for tried in choice["ranked"] for one in _candidate_curve(tried, reports)),
            *curves_of(runs, reports),
        ],
        "budget": _BUDGET + (_ROUNDS if rounds else ""),
        "calibration": importance.get("calibration", {}),
        "layers": importance.get("layers", []),
        "targets": target_figures(stored) if stored else {},
        "skipped": list(stored["skipped"]) if stored else [],
        "seconds": sum(float(one.get("seconds") or 0) for one in [*arms, *ranked, correction]),
    }


def held_out_cross_entropy(report: Report) -> float:
    """Return what a candidate's run measured after it. Raises Internal where that is nothing."""
    value = report.get("after", {}).get("cross_entropy", {}).get("value")
    if not isinstance(value, int | float):
        raise Internal("the training run of a candidate measured no held-out cross-entropy")
    return float(value)


def _size(spec: pb.PruneJobSpec, chosen: PruneCandidate, importance: Report) -> Report:
    """Return what was asked for, and what the new model has; bytes at the training's precision, a
    time with what it was measured on."""
    field, value = size_of(spec)
    shape = chosen["shape"]
    size: Report = {
        "asked": {field: value},
        "got": {
            "non_embedding_share": chosen["non_embedding_share"],
            "non_embedding_parameters": shape["non_embedding_parameters"],
            "parameters": shape["parameters"],
            "bytes": int(shape["parameters"]) * BYTES[spec.training.precision],
        },
    }
    if chosen["latency_ms"] is not None:
        size["got"]["latency_ms"] = chosen["latency_ms"]
        size["measured_on"] = importance.get("latency", {})
    return size


def _references(full: Report, correction: Report) -> dict[str, Report]:
    """Return what the whole model measured, and before it was corrected."""
    found = {"full": full.get("before", {})}
    return found | ({"uncorrected": correction.get("before", {})} if correction else {})


def _candidate_curve(tried: RankedCut, reports: Mapping[str, Report]) -> list[Report]:
    return named(f"candidate/{tried['number']}", reports[tried["report"]])
