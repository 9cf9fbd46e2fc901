"""What the report of a prune job says of its rounds and their candidates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from services.gateway.jobs.arms import Report
from services.gateway.jobs.plans import PruneChoice, PruneCuts, PruneRound


def candidate_reports(cuts: PruneCuts, choice: PruneChoice) -> list[Report]:
    """Return all cuts that were found; `cross_entropy` is None where one was not trained."""
    losses = {one["number"]: one["cross_entropy"] for one in choice["ranked"]}
    return [
        {
            **one,
            "number": number,
            "cross_entropy": losses.get(number),
            "chosen": number == choice["number"],
        }
        for number, one in enumerate(cuts["candidates"])
    ]


def round_reports(
    rounds: Sequence[PruneRound],
    cuts: PruneCuts,
    choice: PruneChoice,
    own: Report,
    reports: Mapping[str, Report],
) -> list[Report]:
    """Return every round: what it cut and what that measured before and after its training. The
    last one's `cuts` and `choice` come by themselves; what it measured is in `own`, its arm."""
    found = [
        _round(at, one["cuts"], one["choice"], reports[one["report"]], "after")
        for at, one in enumerate(rounds, 1)
    ]
    return [*found, _round(len(rounds) + 1, cuts, choice, own, "metrics")]


def round_curves(rounds: Sequence[PruneRound], reports: Mapping[str, Report]) -> list[Report]:
    """Return the points of the learning curves of rounds before the last."""
    return [
        point
        for at, one in enumerate(rounds, 1)
        for point in named(f"round/{at}", reports[one["report"]])
    ]


def named(run: str, report: Report) -> list[Report]:
    """Return the points of a run's learning curve with its name."""
    return [{**point, "run": run} for point in report.get("curves", [])]


def _round(
    number: int, cuts: PruneCuts, choice: PruneChoice, measured: Report, after: str
) -> Report:
    """Return one round; its figures after training are `measured[after]`."""
    chosen = cuts["candidates"][choice["number"]]
    return {
        "round": number,
        "kind": chosen["kind"],
        "shape": chosen["shape"],
        "kept_layers": chosen["kept_layers"],
        "non_embedding_share": chosen["non_embedding_share"],
        "is_cut": bool(cuts["importance"]),
        "candidates": candidate_reports(cuts, choice),
        "steps": int(measured.get("steps") or 0),
        "trained_tokens": int(measured.get("trained_tokens") or 0),
        "seconds": float(measured.get("seconds") or 0),
        "before": measured.get("before", {}),
        "after": measured.get(after, {}),
    }
