"""Figures of a report as words of a table."""

from __future__ import annotations

from typing import Any

from stillhouse_client import job_report


def figure(found: job_report.Figure | None) -> str:
    """Return `0.912 [0.884, 0.937]`, or `-`."""
    value = job_report.number((found or {}).get("value"))
    if found is None or value is None:
        return "-"
    low, high = (job_report.number(found.get(side)) for side in ("low", "high"))
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def count(raw: Any) -> str:
    """Return `2,000`, or `-`."""
    value = job_report.number(raw)
    return "-" if value is None else f"{value:,.0f}"
