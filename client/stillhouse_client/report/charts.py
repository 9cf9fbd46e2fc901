"""The charts of the report, each drawn into given axes from the figures of a job's report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from stillhouse_client.report import theme

_LIMITS = (10, 30)


def fidelity_over_nec(axes: Axes, task: dict[str, Any], title: str) -> None:
    """Draw fidelity over NEC for named concepts, controls and probe, with 95 % bands."""
    for key, (name, colour, line, marker) in theme.SERIES.items():
        points = _curve(task, key)
        if not points:
            continue
        nec = [p[0] for p in points]
        axes.plot(
            nec, [p[1] for p in points], line, marker=marker, ms=4, lw=1.8, color=colour, label=name
        )
        axes.fill_between(
            nec, [p[2] for p in points], [p[3] for p in points], color=colour, alpha=0.13, lw=0
        )
    dense = _metric(task.get("dense_probe"), "fidelity")
    if dense:
        axes.axhline(dense["value"], color=theme.INK, lw=1, ls=(0, (1, 3)), label="dense probe")
    for limit in _LIMITS:
        axes.axvline(limit, color="#DDE0E4", lw=1, zorder=0)
    axes.set(xlabel="non-zero weights per class (NEC)", ylabel="agreement with the teacher")
    axes.set_title(title)
    axes.grid(axis="y", color="#ECEEF0", lw=0.8)
    axes.set_axisbelow(True)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)


def confusion(axes: Axes, counts: Sequence[Sequence[float]], classes: Sequence[str]) -> None:
    """Draw teacher (rows) against student (columns) as shares of each row, counts written in."""
    matrix = np.asarray(counts, dtype=np.float64)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="equal")
    small = len(classes) > 8
    for row, column in np.argwhere(matrix > 0):
        dark = shares[row, column] > 0.55
        axes.text(
            column,
            row,
            f"{matrix[row, column]:.0f}",
            ha="center",
            va="center",
            fontsize=7 if small else 10,
            color="white" if dark else theme.INK,
        )
    axes.set_xticks(range(len(classes)), classes, rotation=60, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(classes)), classes)
    axes.tick_params(length=0, labelsize=8 if small else 9)
    axes.set(xlabel="student", ylabel="teacher")
    for spine in axes.spines.values():
        spine.set_visible(False)


def tuned_weights(axes: Axes, tuning: dict[str, Any]) -> None:
    """Draw each edited weight before and after, with the box it may move in."""
    effects = tuning["effects"]
    for row, effect in enumerate(effects):
        low, high = effect["box"]
        axes.barh(row, high - low, left=low, height=0.5, color=theme.BLUE, alpha=0.15)
        axes.annotate(
            "",
            xy=(effect["after"], row),
            xytext=(effect["before"], row),
            arrowprops={"arrowstyle": "->", "color": theme.BLUE, "lw": 1.8},
        )
        axes.plot(effect["before"], row, "o", color=theme.GREY, ms=8)
        axes.plot(effect["after"], row, "o", color=theme.BLUE, ms=8)
    axes.axvline(0, color="#B9BEC5", lw=1)
    axes.set_yticks(range(len(effects)), [f"{e['class']}:\n{e['concept']}" for e in effects])
    axes.set_ylim(len(effects) - 0.4, -0.6)
    axes.set_xlabel("weight: grey before, blue after, shaded the box")
    axes.set_title("The edited weight")


def tuned_metrics(axes: Axes, tuning: dict[str, Any]) -> None:
    """Draw out-of-fold changes with intervals beside those of random edits of equal size."""
    changes = shown_changes(tuning)
    for row, change in enumerate(changes):
        for key, offset, colour, marker in (
            ("change", -0.14, theme.BLUE, "o"),
            ("random_change", 0.14, theme.GREY, "s"),
        ):
            found = change[key]
            axes.plot([found["low"], found["high"]], [row + offset] * 2, color=colour, lw=2.5)
            axes.plot(found["value"], row + offset, marker, color=colour, ms=6)
    axes.axvline(0, color="#B9BEC5", lw=1)
    axes.set_yticks(range(len(changes)), [c["metric"].replace("/", " of ") for c in changes])
    axes.set_ylim(len(changes) - 0.4, -0.6)
    axes.set_xlabel("change out of fold (blue: this edit, grey: random edits of its size)")
    axes.set_title("What it did")


def shown_changes(tuning: dict[str, Any], most: int = 8) -> list[dict[str, Any]]:
    """Return the overall metrics, the edited class's own, then the largest other changes."""
    own = f"/{tuning['class']}"
    ranked = sorted(
        tuning["changes"],
        key=lambda c: (
            "/" in c["metric"],
            not c["metric"].endswith(own),
            -abs(c["change"]["value"]),
        ),
    )
    return ranked[:most]


def _curve(task: dict[str, Any], key: str) -> list[tuple[float, float, float, float]]:
    points: list[tuple[float, float, float, float]] = []
    curve: list[dict[str, Any]] = (task.get("curves") or {}).get(key) or []
    for point in curve:
        found: Any = point.get("fidelity")
        nec: Any = point.get("nec")
        nec = nec["value"] if isinstance(nec, dict) else nec
        if isinstance(found, dict):
            value: Any = found["value"]
            low: Any = found.get("low", value)
            high: Any = found.get("high", value)
            points.append((float(nec), float(value), float(low), float(high)))
        elif found is not None:
            points.append((float(nec), float(found), float(found), float(found)))
    return sorted(points)


def _metric(entry: dict[str, Any] | None, metric: str) -> dict[str, float] | None:
    found = (entry or {}).get(metric)
    return found if isinstance(found, dict) and found.get("value") is not None else None
