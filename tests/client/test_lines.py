"""Files with one entry per line."""

from __future__ import annotations

from pathlib import Path

import pytest
from stillhouse_client.commands.lines import read_lines
from stillhouse_client.errors import InvalidRequest


def lines_of(tmp_path: Path, data: bytes) -> list[str]:
    path = tmp_path / "lines.txt"
    path.write_bytes(data)
    return read_lines(path, "words", "one a line")


def test_entries_are_read_once_and_in_order(tmp_path: Path) -> None:
    assert lines_of(tmp_path, b"\xef\xbb\xbfone \r\n\n# two\n three\none\n") == ["one", "three"]


def test_a_line_in_double_quotes_may_hold_line_breaks(tmp_path: Path) -> None:
    text = b'"What is {word}?\\nAnswer:"\n"unfinished\n"Yes" and "no"\n'
    expected = ["What is {word}?\nAnswer:", '"unfinished', '"Yes" and "no"']
    assert lines_of(tmp_path, text) == expected


@pytest.mark.parametrize("data", [b"", b"# only\n\n", b"\xff\xfe"])
def test_files_without_entries_are_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(InvalidRequest, match="lines.txt"):
        lines_of(tmp_path, data)
