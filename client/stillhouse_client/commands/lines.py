"""Text files that a person writes for a command: one entry per line."""

from __future__ import annotations

from pathlib import Path

from stillhouse_client.errors import InvalidRequest


def read_lines(path: Path, what: str, hint: str) -> list[str]:
    """Return the lines of a file without empty ones, comments (`#`) and repetitions.

    Raises InvalidRequest where none is left, or where it is not text in UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidRequest(f"{path} is not UTF-8 text", hint=hint) from None
    lines = (line.strip() for line in text.splitlines())
    found = list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if not found:
        raise InvalidRequest(f"{path} has no {what}", hint=hint)
    return found
