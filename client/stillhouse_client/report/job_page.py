"""Writes the report of a language, tuneshift or prune job: a page, a picture, and the figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes

from stillhouse_client import job_report
from stillhouse_client.report import job_charts, theme
from stillhouse_client.report.page import number


@dataclass(frozen=True)
class Panel:
    """One chart: its heading, a sentence on how to read it, and what draws it."""

    title: str
    text: str
    draw: Callable[[Axes], None]


def write(report: dict[str, Any], title: str, folder: Path) -> list[Path]:
    """Write `report.html`, `report.png` and `report.json` into `folder` and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    found = panels(report)
    page, picture, figures = (folder / f"report.{kind}" for kind in ("html", "png", "json"))
    page.write_text(_html(report, title, found), encoding="utf-8")
    figures.write_text(json.dumps(report, indent=2, ensure_ascii=False), encoding="utf-8")
    written = [page, figures]
    if found:
        picture.write_bytes(overview(found))
        written.insert(1, picture)
    return written


def panels(report: dict[str, Any]) -> list[Panel]:
    """Return the charts that the report has figures for."""
    arms = job_report.arms(report) if "arms" in report else []
    histogram = job_report.histogram(report)
    found: list[Panel] = []
    for metric in job_report.metrics_of(arms):
        found.append(_arms_panel(arms, metric, str(report.get("kind"))))
    found += [
        _measure_panel(measure)
        for measure in job_report.measures(report)
        if "arms" not in report and measure.after
    ]
    if rounds := job_report.rounds(report):
        text = "Share of a round's prompts whose answers are kept. Answers outside the domain that "
        text += "are kept show how much style alone shifts perplexity."
        found.append(Panel("Kept per round", text, lambda axes: job_charts.rounds(axes, rounds)))
    if histogram is not None:
        text = "How much more probable the tuned model finds its answers than the base does."
        found.append(Panel("Gained log-probability", text, lambda a: job_charts.gaps(a, histogram)))
    return found + _curve_panels(report)


def overview(found: list[Panel]) -> bytes:
    """Return all charts as one PNG, two in a row."""
    rows = (len(found) + 1) // 2
    with theme.figure(13, 3.9 * rows) as figure:
        grid = figure.add_gridspec(rows, 2 if len(found) > 1 else 1)
        for index, panel in enumerate(found):
            axes = figure.add_subplot(grid[index // 2, index % 2])
            panel.draw(axes)
            axes.set_title(panel.title)
        return theme.to_png(figure)


def _arms_panel(arms: list[job_report.Arm], metric: str, kind: str) -> Panel:
    title = job_report.metric_name(metric)
    if kind == "classifier":
        text = "The teacher, and the network after learning from each; 95 % intervals."
        return Panel(_capital(title), text, lambda axes: job_charts.arms(axes, arms, metric))
    text = "The target before training, after it on each set of examples, and the models they "
    text += "come from; 95 % intervals."
    if kind == "prune":
        text = "The cut before training and after it, its controls, and the full model; 95 % "
        text += "intervals."
    return Panel(_capital(title), text, lambda axes: job_charts.arms(axes, arms, metric))


def _measure_panel(measure: job_report.Measure) -> Panel:
    title = _capital(job_report.metric_name(measure.metric))
    return Panel(
        title, "Before and after, 95 % intervals.", lambda a: job_charts.measure(a, measure)
    )


def _curve_panels(report: dict[str, Any]) -> list[Panel]:
    curves = job_report.curves(report)
    found = []
    for series in dict.fromkeys(name for run in curves.values() for name in run):
        if series in ("learning_rate", "tokens_per_s"):
            continue
        lines = {run: points[series] for run, points in curves.items() if series in points}
        title = _capital(series.replace("heldout_", "held-out ").replace("_", " "))
        found.append(Panel(title, "By training step.", _curve(lines)))
    return found


def _curve(lines: dict[str, list[tuple[float, float]]]) -> Callable[[Axes], None]:
    return lambda axes: job_charts.curves(axes, lines)


def _html(report: dict[str, Any], title: str, found: list[Panel]) -> str:
    arms = job_report.arms(report) if "arms" in report else []
    measures = [] if arms else job_report.measures(report)
    loader = PackageLoader("stillhouse_client.report", ".")
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    made.filters["number"] = number
    made.filters["metric"] = job_report.metric_name
    made.filters["arm"] = job_report.arm_name
    return made.get_template("job_page.html.j2").render(
        title=title,
        arms=arms,
        metrics=job_report.metrics_of(arms),
        measures=measures,
        has_teacher=any(one.teacher for one in measures),
        paired=job_report.paired(report),
        is_prune=report.get("kind") == "prune",
        candidates=job_report.candidates(report),
        sizes=job_report.SIZES,
        hops=job_report.hops(report),
        gains=job_report.gains(report),
        paired_alone=job_report.paired_alone(report),
        coverage=job_report.coverage(report),
        rounds=job_report.rounds(report),
        tau_counts=report.get("tau_counts") or {},
        panels=[(panel, _svg(panel)) for panel in found],
        seconds=job_report.number(report.get("seconds")),
        skipped=[str(one) for one in report.get("skipped") or ()][:20],
    )


def _svg(panel: Panel) -> Markup:
    with theme.figure(6.4, 3.7) as figure:
        panel.draw(figure.add_subplot())
        return Markup(theme.to_svg(figure))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
