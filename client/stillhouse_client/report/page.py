"""Writes report.html and report.png: all that the demo found, as pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from stillhouse_client.client import AsyncClient
from stillhouse_client.report import charts, theme
from stillhouse_client.report.gallery import ClassCard, Gallery

_ROWS = (
    ("student", "named concepts (student)"),
    ("random_control", "random directions"),
    ("random_words", "random words"),
    ("sparse_probe", "sparse probe, unnamed"),
    ("dense_probe", "dense probe, unnamed"),
)


@dataclass(frozen=True)
class TaskPage:
    """What the page shows of one task."""

    name: str
    report: dict[str, Any]
    classes: list[ClassCard]
    curve: Markup
    confusion: Markup | None


async def write(client: AsyncClient, report: dict[str, Any], folder: Path) -> list[Path]:
    """Write the pages of a demo report (see `demo_report.build`) and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    tasks = [await _task(client, name, task) for name, task in report["tasks"].items()]
    tuning = report.get("tuning")
    html = _template().render(
        report=report,
        tasks=tasks,
        rows=_ROWS,
        tuning=tuning,
        tuning_chart=_tuning_chart(tuning) if tuning else None,
    )
    page, picture = folder / "report.html", folder / "report.png"
    page.write_text(html, encoding="utf-8")
    picture.write_bytes(overview(report))
    return [page, picture]


def overview(report: dict[str, Any]) -> bytes:
    """Return the whole report as one PNG: curves, confusion and tuning."""
    tasks, tuning = report["tasks"], report.get("tuning")
    with theme.figure(13, 14 if tuning else 10.5) as figure:
        ratios = [1.0, 1.35, 0.55] if tuning else [1.0, 1.35]
        grid = figure.add_gridspec(len(ratios), len(tasks), height_ratios=ratios)
        for column, (name, task) in enumerate(tasks.items()):
            title = f"{name}: {len(task['classes'])} classes"
            charts.fidelity_over_nec(figure.add_subplot(grid[0, column]), task, title)
            counts = confusion_counts(task)
            if counts is not None:
                charts.confusion(figure.add_subplot(grid[1, column]), *counts)
        if tuning:
            charts.tuned_weights(figure.add_subplot(grid[2, 0]), tuning)
            charts.tuned_metrics(figure.add_subplot(grid[2, 1:]), tuning)
        return theme.to_png(figure)


def confusion_counts(task: dict[str, Any]) -> tuple[list[list[float]], list[str]] | None:
    """Return counts (teacher by student) and class names of a task's report, or None."""
    found = task.get("confusion") or {}
    counts = found.get("counts") or found.get("matrix")
    if not counts:
        return None
    return counts, [str(c) for c in found.get("classes") or task["classes"]]


def number(found: Any, digits: int = 3) -> str:
    """Return a metric for the page: value with its interval, or a dash."""
    if not isinstance(found, dict) or found.get("value") is None:
        return "-" if found is None or isinstance(found, dict) else f"{found:.{digits}f}"
    text = f"{found['value']:.{digits}f}"
    if found.get("low") is None or found["low"] == found["high"]:
        return text
    return f"{text} [{found['low']:.{digits}f}, {found['high']:.{digits}f}]"


def plain(found: Any) -> str:
    """Return a metric for the page without its interval."""
    value = found.get("value") if isinstance(found, dict) else found
    return "-" if value is None else f"{value:.1f}"


async def _task(client: AsyncClient, name: str, task: dict[str, Any]) -> TaskPage:
    student = task["student_version"].split("/versions/")[0]
    version = await client.students.version(student, task["student_version"])
    cards = await Gallery(client, student).cards(version.class_concepts)
    with theme.figure(6.0, 3.7) as figure:
        charts.fidelity_over_nec(figure.add_subplot(), task, "")
        curve = Markup(theme.to_svg(figure))
    return TaskPage(name, task, cards, curve, _confusion_chart(task))


def _confusion_chart(task: dict[str, Any]) -> Markup | None:
    counts = confusion_counts(task)
    if counts is None:
        return None
    side = 3.4 if len(counts[1]) <= 8 else 6.0
    with theme.figure(side + 0.6, side + 0.4) as figure:
        charts.confusion(figure.add_subplot(), *counts)
        return Markup(theme.to_svg(figure))


def _tuning_chart(tuning: dict[str, Any]) -> Markup:
    with theme.figure(10.5, 3.2) as figure:
        left, right = figure.subplots(1, 2)
        charts.tuned_weights(left, tuning)
        charts.tuned_metrics(right, tuning)
        return Markup(theme.to_svg(figure))


def _template() -> Any:
    loader = PackageLoader("stillhouse_client.report", ".")
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    made.filters["number"] = number
    made.filters["plain"] = plain
    made.filters["jpeg"] = lambda data: theme.data_uri(data, "image/jpeg")
    return made.get_template("page.html.j2")
