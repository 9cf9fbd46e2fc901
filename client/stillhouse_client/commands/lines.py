"""Text files that a person writes for a command: one entry per line."""

from __future__ import annotations

import json
from pathlib import Path

from stillhouse_client.errors import InvalidRequest


def read_lines(path: Path, what: str, hint: str) -> list[str]:
    """Return the lines of a file without empty ones, comments (`#`) and repetitions. A line in
    double quotes is a JSON string, which may hold line breaks.

    Raises InvalidRequest where none is left, or where it is not text in UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidRequest(f"{path} is not UTF-8 text", hint=hint) from None
    lines = (line.strip() for line in text.splitlines())
    kept = (_unquoted(line) for line in lines if line and not line.startswith("#"))
    found = list(dict.fromkeys(kept))
    if not found:
        raise InvalidRequest(f"{path} has no {what}", hint=hint)
    return found


def _unquoted(line: str) -> str:
    """Return what a JSON string says; other lines as they are."""
    try:
        found = json.loads(line) if line.startswith('"') else line
    except ValueError:
        return line
    return found if isinstance(found, str) else line
