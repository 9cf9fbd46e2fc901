"""The charts of a job, each drawn into given axes."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from stillhouse_client.job_report import Arm, Histogram, Measure, Round, number, run_name
from stillhouse_client.report import theme

_RULE = "#B9BEC5"
_LINES = (theme.BLUE, theme.ORANGE, theme.GREEN, theme.PINK, theme.AMBER, theme.GREY)
_STYLES = ("-", "--", "-.", ":")


def arms(axes: Axes, found: list[Arm], metric: str) -> None:
    """Draw one metric of every arm with its interval; models as they are in grey."""
    shown = [arm for arm in found if number(arm.metrics.get(metric, {}).get("value")) is not None]
    for row, arm in enumerate(shown):
        colour = theme.GREY if arm.examples is None else theme.BLUE
        _point(axes, row, arm.metrics[metric], colour, "s" if arm.examples is None else "o")
    _rows(axes, [arm.name for arm in shown])


def measure(axes: Axes, found: Measure) -> None:
    """Draw one metric before and after, and the teacher's where it has one."""
    figures = [("before", found.before), ("after", found.after), ("teacher", found.teacher)]
    shown = [(name, f) for name, f in figures if f and number(f.get("value")) is not None]
    for row, (name, figure) in enumerate(shown):
        after = name == "after"
        _point(axes, row, figure, theme.BLUE if after else theme.GREY, "o" if after else "s")
    _rows(axes, [name for name, _ in shown])


def rounds(axes: Axes, found: list[Round]) -> None:
    """Draw the share of prompts kept per round, in the domain and outside it."""
    series = (
        ("in the domain", [r.in_domain for r in found], theme.BLUE, "-o"),
        ("outside", [r.off_domain for r in found], theme.ORANGE, "--s"),
        ("all", [(r.kept, r.prompts) for r in found], theme.GREY, ":^"),
    )
    for name, counts, colour, style in series:
        points = [
            (r.number, kept / asked)
            for r, (kept, asked) in zip(found, counts, strict=True)
            if asked
        ]
        if points:
            axes.plot(*zip(*points, strict=True), style, color=colour, label=name, ms=5, lw=1.8)
    axes.set(xlabel="round", ylabel="share kept", ylim=(0, 1.02))
    axes.set_xticks([r.number for r in found])
    _finish(axes)


def gaps(axes: Axes, found: Histogram) -> None:
    """Draw how the gained log-probability is spread, as shares, with tau marked."""
    for name, counts, colour, hatch in (
        ("in the domain", found.in_domain, theme.BLUE, ""),
        ("outside", found.off_domain, theme.ORANGE, "//"),
    ):
        total = sum(counts)
        if total:
            shares = [count / total for count in counts]
            axes.stairs(
                shares, found.edges, fill=True, alpha=0.45, color=colour, hatch=hatch, label=name
            )
    if found.threshold is not None:
        axes.axvline(found.threshold, color=theme.INK, lw=1.4, ls="--", label="tau: kept from here")
    axes.set(xlabel="gained log-probability (nats a token)", ylabel="share of samples")
    _finish(axes)


def curves(axes: Axes, lines: dict[str, list[tuple[float, float]]]) -> None:
    """Draw (step, value) points of each training run."""
    for index, (run, points) in enumerate(lines.items()):
        axes.plot(
            *zip(*points, strict=True),
            _STYLES[index // len(_LINES) % len(_STYLES)],
            color=_LINES[index % len(_LINES)],
            marker="o" if len(points) < 20 else "",
            ms=3,
            lw=1.6,
            label=run_name(run) or None,
        )
    axes.set(xlabel="step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _finish(axes)


def _point(axes: Axes, row: int, figure: dict[str, float], colour: str, marker: str) -> None:
    low, high = (number(figure.get(side)) for side in ("low", "high"))
    if low is not None and high is not None:
        axes.plot([low, high], [row, row], color=colour, lw=2.5)
    axes.plot(figure["value"], row, marker, color=colour, ms=7)


def _rows(axes: Axes, names: list[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="x", color="#ECEEF0", lw=0.8)
    axes.set_axisbelow(True)


def _finish(axes: Axes) -> None:
    axes.grid(axis="y", color="#ECEEF0", lw=0.8)
    axes.set_axisbelow(True)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
