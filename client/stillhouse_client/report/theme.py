"""Colours and matplotlib settings of the report: readable, light, safe for the colour-blind."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
PINK, AMBER, GREY, INK = "#CC79A7", "#E69F00", "#8A8F98", "#22262B"
SERIES = {
    "student": ("named concepts", BLUE, "-", "o"),
    "random_control": ("random directions", GREY, "--", "s"),
    "random_words": ("random words", PINK, "-.", "^"),
    "sparse_probe": ("sparse probe (unnamed)", AMBER, ":", "D"),
}
"""Key in the report: name, colour (Okabe-Ito), line and marker, so that no two differ by colour
alone."""
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#B9BEC5",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": False,
    "xtick.color": "#555B63",
    "ytick.color": "#555B63",
    "legend.frameon": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "stillhouse",
    "figure.facecolor": "white",
}


@contextmanager
def figure(width: float, height: float) -> Iterator[Figure]:
    """Yield a figure of that size in inches with the report's style, closed afterwards."""
    with plt.rc_context(_STYLE):
        made = plt.figure(figsize=(width, height), layout="constrained")
        try:
            yield made
        finally:
            plt.close(made)


def to_svg(made: Figure) -> str:
    """Return a figure as an `<svg>` element to put into a page."""
    buffer = io.StringIO()
    made.savefig(buffer, format="svg", metadata={"Date": None, "Creator": "Stillhouse"})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def to_png(made: Figure, dpi: int = 130) -> bytes:
    """Return a figure as PNG bytes."""
    buffer = io.BytesIO()
    made.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def data_uri(data: bytes, kind: str) -> str:
    """Return bytes as a `data:` URI."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
