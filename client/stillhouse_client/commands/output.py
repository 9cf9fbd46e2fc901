"""What commands print: tables for people, or JSON and nothing else."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.table import Table
from stillhouse.student.v1 import student_pb2

_PIPE_WIDTH = 160

out = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
"""Standard output: results."""
err = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else _PIPE_WIDTH)
"""Standard error: progress, notes and errors."""


def day(time: Timestamp) -> str:
    """Return the day of a time, in UTC."""
    return time.ToDatetime().strftime("%Y-%m-%d")


def to_plain(value: Any) -> Any:
    """Return `value` as JSON types; messages by their proto field names."""
    if isinstance(value, Message):
        return MessageToDict(
            value, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
    if isinstance(value, dict):
        return {key: to_plain(inner) for key, inner in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [to_plain(inner) for inner in value]
    return value


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """Print one JSON document on standard output."""
    print(json.dumps(to_plain(value), indent=indent, ensure_ascii=False), flush=True)


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    title: str = "",
    cut: Collection[str] = (),
) -> None:
    """Print a table; a column whose name starts with `#` is set right, for numbers. The first
    column, which names the row, is never broken. `cut` names columns of long text that share
    what the others leave of the line; then each row is one line."""
    grid = Table(title=title or None, title_justify="left", header_style="bold", expand=bool(cut))
    for index, column in enumerate(columns):
        side: JustifyMethod = "right" if column.startswith("#") else "left"
        grid.add_column(
            column.lstrip("#"),
            justify=side,
            no_wrap=bool(cut) or index == 0,
            overflow="ellipsis" if cut else "fold",
            ratio=1 if column in cut else None,
        )
    for row in rows:
        grid.add_row(*(escape(cell) for cell in row))
    out.print(grid)


def pairs(rows: Iterable[tuple[str, str]]) -> None:
    """Print names and values, one pair a line."""
    grid = Table.grid(padding=(0, 2))
    for name, value in rows:
        grid.add_row(f"[dim]{escape(name)}[/dim]", escape(value))
    out.print(grid)


def say(text: str) -> None:
    """Print a line for people on standard output."""
    out.print(escape(text), soft_wrap=True)


def detail(text: str) -> None:
    """Print a line for people on standard output, below the one it belongs to."""
    out.print(f"    {escape(text)}", style="dim", soft_wrap=True)


def printable(text: str) -> str:
    """Return text of a model or a dataset without what could steer a terminal."""
    return "".join(c for c in text if c in "\n\t" or c.isprintable())


def one_line(text: str) -> str:
    """Return text of a model or a dataset on one line, without what could steer a terminal."""
    return printable(" ".join(text.split()))


def write(text: str) -> None:
    """Print a piece of text on standard output at once, without a line's end."""
    sys.stdout.write(printable(text))
    sys.stdout.flush()


def note(text: str) -> None:
    """Print a line for people on standard error, out of the way of results."""
    err.print(escape(text), style="dim", soft_wrap=True)


def estimate(value: student_pb2.Estimate | dict[str, Any] | None) -> str:
    """Return `0.912 [0.884, 0.937]`."""
    if value is None:
        return "-"
    if isinstance(value, student_pb2.Estimate):
        value = {"value": value.value, "low": value.low, "high": value.high}
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def when(time: Timestamp) -> str:
    """Return a time in the reader's zone."""
    if not time.seconds:
        return "-"
    return time.ToDatetime().astimezone().strftime("%Y-%m-%d %H:%M:%S")


def age(time_then: Timestamp) -> str:
    """Return how long ago a time was: `4 min ago`."""
    passed = max(time.time() - time_then.seconds, 0)
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if passed >= length:
            return f"{passed / length:.0f} {unit} ago"
    return "just now"


def seconds(value: float) -> str:
    """Return a duration for people: `4.2 s`, `3 min 10 s`."""
    if value < 60:
        return f"{value:.1f} s"
    return f"{int(value) // 60} min {int(value) % 60} s"


def size(count: int) -> str:
    """Return a byte count for people."""
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"
