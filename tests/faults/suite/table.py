"""What a campaign came to: a table of faults by stage, and figures for a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from rich.table import Column, Table

from tests.faults.suite.faults import (
    FLUSH,
    KINDS,
    LONG_STOP,
    SERVICES,
    SPECIAL,
    STAGES,
    Fault,
    Round,
)

BAD = ("lost", "twice", "wrong_digest", "left")
"""What may be wrong with a round."""


def summary(rounds: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures: how many faults, and how many rounds ended other than they should."""
    found: Counter[str] = Counter(dict.fromkeys(("injected", "in_stage", *BAD), 0))
    ends: Counter[str] = Counter()
    matrix: Counter[str] = Counter()
    for one in rounds:
        found["rounds"] += 1
        ends[f"{one['state']} {one['error'].partition(':')[0]}".strip()] += 1
        for kind in BAD:
            found[kind] += bool(one[kind])
        job = Round.parse(one["text"]).job
        for each in one["injected"]:
            fault = Fault.parse(each["fault"])
            found["injected"] += 1
            found["in_stage"] += fault.stage in each["inside"].split("+")
            matrix[f"{job} {fault.service} {fault.kind} {fault.stage}"] += 1
    return {**found, "ends": dict(ends), "matrix": dict(sorted(matrix.items()))}


def outcomes(rounds: Iterable[Mapping[str, Any]], job: str) -> Table:
    """The faults of a job kind: how many, and in how many of their rounds something was wrong."""
    count: Counter[tuple[str, str, str]] = Counter()
    bad: Counter[tuple[str, str, str]] = Counter()
    for one in rounds:
        if Round.parse(one["text"]).job != job:
            continue
        wrong = any(one[kind] for kind in BAD)
        for each in one["injected"]:
            cell = Fault.parse(each["fault"]).cell
            count[cell] += 1
            bad[cell] += wrong
    table = Table(Column("fault", no_wrap=True), *STAGES[job], title=f"{job} job")
    rows = [(one, kind) for one in SERVICES for kind in (*KINDS, LONG_STOP, FLUSH)]
    for service, kind in [*rows, *(one[:2] for one in SPECIAL)]:
        cells = [(service, kind, stage) for stage in STAGES[job]]
        if any(count[cell] for cell in cells):
            table.add_row(f"{service} {kind}", *(_cell(count[c], bad[c]) for c in cells))
    return table


def _cell(count: int, bad: int) -> str:
    if not count:
        return ""
    return f"{count} ok" if not bad else f"[red]{count}, {bad} bad[/red]"
