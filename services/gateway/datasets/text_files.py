"""Text files as rows: JSON lines, parquet and plain texts, read as streams of bounded memory."""

from __future__ import annotations

import io
import json
import posixpath
import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO, TypeAlias, cast

import pyarrow as pa
import pyarrow.parquet as pq

from services.common.errors import InvalidInput
from services.common.texts import TextRecord
from services.gateway.datasets.entries import MAX_ITEMS, Rejected, shown, split_of
from services.gateway.datasets.text_fields import KNOWN, Row, Unfit, to_row

JSON_LINES = (".jsonl", ".ndjson")
TEXT_TYPES = (*JSON_LINES, ".parquet", ".txt")
MAX_LINE_BYTES = 8 << 20
MAX_PARAGRAPHS_CHARS = 4_000
"""Paragraphs of a plain text are joined up to this length, so that a record is worth a sequence."""
MAX_PARQUET_BYTES = 4 << 30
_MAX_GROUP_BYTES = 2 << 30
_ROWS_AT_ONCE = 64
_BATCH_BYTES = 256 << 20
_SPOOL_BYTES = 32 << 20
_HEAD_BYTES = 64 << 10

RowOrNot: TypeAlias = Row | Rejected


def read_rows(name: str, file: BinaryIO) -> Iterator[RowOrNot]:
    """Yield the rows of one file, of a kind told by its name. Raises InvalidInput."""
    kind = posixpath.splitext(name)[1].lower()
    if kind == ".parquet":
        yield from _parquet(name, file)
    elif kind in JSON_LINES:
        yield from _json_lines(name, file)
    else:
        yield from _plain(name, file)


def name_of_kind(file: BinaryIO) -> str:
    """Return a name for an uploaded file without one, its kind told by its first bytes.

    Raises InvalidInput for what is neither text nor parquet.
    """
    head = file.read(_HEAD_BYTES)
    if head[:4] == b"PAR1":
        return "upload.parquet"
    if not _is_text(head):
        raise InvalidInput(
            "the file is neither an archive nor text: send zip, tar, .jsonl, .parquet or .txt",
            field="archive",
        )
    first = next((line for line in head.splitlines() if line.strip()), b"")
    return "upload.jsonl" if first.lstrip().startswith(b"{") else "upload.txt"


def file_split(name: str) -> str:
    """Return the split that a file's name or folder says: `train-00000.parquet`, `test/a.txt`."""
    *folders, last = name.split("/")
    stems = [last.replace(".", "-").replace("_", "-").split("-")[0], *reversed(folders)]
    return next(filter(None, map(split_of, stems)), "")


def _json_lines(name: str, file: BinaryIO) -> Iterator[RowOrNot]:
    split = file_split(name)
    for at, line in enumerate(_lines(file), start=1):
        where = f"{shown(name)[:200]}:{at}"
        if line is None:
            yield Rejected(where, f"the line is longer than {MAX_LINE_BYTES:,} bytes")
        elif line.strip():
            yield _of_line(line, where, split)


def _of_line(line: bytes, where: str, split: str) -> RowOrNot:
    try:
        raw = json.loads(line)
        if not isinstance(raw, dict):
            return Rejected(where, "the line is no JSON object")
        return to_row(raw, where, split)
    except (ValueError, RecursionError) as error:  # bad UTF-8 is a ValueError too
        return Rejected(where, f"the line is not JSON: {str(error)[:120]}")
    except Unfit as unfit:
        return Rejected(where, unfit.reason)


def _lines(file: BinaryIO) -> Iterator[bytes | None]:
    """Yield lines; None stands for one over the limit, the rest of which is skipped."""
    reader = io.BufferedReader(cast("io.RawIOBase", _Raw(file)), 1 << 20)
    while line := reader.readline(MAX_LINE_BYTES + 1):
        if len(line) <= MAX_LINE_BYTES:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = reader.readline(MAX_LINE_BYTES)
        yield None


class _Raw(io.RawIOBase):
    """Any readable stream as a raw one, so that lines are found in it by one buffer."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _plain(name: str, file: BinaryIO) -> Iterator[RowOrNot]:
    """Yield texts of whole paragraphs, which blank lines separate."""
    split, stem = file_split(name), shown(name)[:200]
    text, number = "", 0
    for part in _paragraphs(file):
        if isinstance(part, int):
            yield Rejected(f"{stem}:{part}", "the line is not UTF-8 text")
            continue
        if text and len(text) + len(part) + 2 > MAX_PARAGRAPHS_CHARS:
            yield Row(TextRecord(f"{stem}/{number:07d}", text=text), split)
            text, number = "", number + 1
        text = f"{text}\n\n{part}" if text else part
    if text:
        yield Row(TextRecord(f"{stem}/{number:07d}", text=text), split)


def _paragraphs(file: BinaryIO) -> Iterator[str | int]:
    """Yield paragraphs, long ones in pieces; an int is the number of a line that cannot be read."""
    lines: list[str] = []
    size = 0
    for at, raw in enumerate(_lines(file), start=1):
        try:
            line = None if raw is None else raw.decode("utf-8").rstrip()
        except UnicodeDecodeError:
            line = None
        if line is None or "\0" in line:
            yield at
            continue
        if line:
            lines.append(line)
            size += len(line) + 1
        if lines and (not line or size > MAX_PARAGRAPHS_CHARS):
            yield from _pieces("\n".join(lines))
            lines, size = [], 0
    if lines:
        yield from _pieces("\n".join(lines))


def _pieces(text: str) -> Iterator[str]:
    """Cut a long paragraph at the last blank before the limit."""
    while len(text) > MAX_PARAGRAPHS_CHARS:
        at = max(text.rfind(blank, 1, MAX_PARAGRAPHS_CHARS) for blank in " \n")
        at = at if at > 0 else MAX_PARAGRAPHS_CHARS
        yield text[:at].rstrip()
        text = text[at:].lstrip()
    if text:
        yield text


def _parquet(name: str, file: BinaryIO) -> Iterator[RowOrNot]:
    split, stem = file_split(name), shown(name)[:200]
    with tempfile.SpooledTemporaryFile(_SPOOL_BYTES) as spool:
        source = file if file.seekable() else _spooled(file, cast("BinaryIO", spool))
        try:
            with pq.ParquetFile(source) as table:
                for at, raw in enumerate(_table_rows(name, table)):
                    where = f"{stem}/{at:07d}"
                    try:
                        yield to_row(raw, where, split)
                    except Unfit as unfit:
                        yield Rejected(where, unfit.reason)
        except (pa.ArrowException, OSError) as error:
            text = f"{shown(name)} cannot be read as parquet: {error}"
            raise InvalidInput(text[:300], field="uri") from None


def _table_rows(name: str, table: pq.ParquetFile) -> Iterator[dict[str, Any]]:
    meta = table.metadata
    groups = [meta.row_group(i).total_byte_size for i in range(meta.num_row_groups)]
    if meta.num_rows > MAX_ITEMS or max(groups, default=0) > _MAX_GROUP_BYTES:
        raise InvalidInput(f"{shown(name)} is larger than the limit", field="uri")
    columns = [column for column in table.schema_arrow.names if column in KNOWN]
    if not columns:
        there = ", ".join(table.schema_arrow.names)[:200]
        raise InvalidInput(f"{shown(name)}: no column of texts among {there}", field="uri")
    # A dictionary counts once in its group, and a row can repeat all of it.
    at_once = _BATCH_BYTES // max(groups, default=1) if any(groups) else _ROWS_AT_ONCE
    rows = min(max(at_once, 1), _ROWS_AT_ONCE)
    for batch in table.iter_batches(batch_size=rows, columns=columns):
        yield from batch.to_pylist()


def _spooled(file: BinaryIO, spool: BinaryIO) -> BinaryIO:
    """Copy a stream that cannot be sought in, up to the limit."""
    left = MAX_PARQUET_BYTES
    while chunk := file.read(1 << 20):
        left -= len(chunk)
        if left < 0:
            raise InvalidInput(f"a parquet file is over {MAX_PARQUET_BYTES:,} bytes", field="uri")
        spool.write(chunk)
    spool.seek(0)
    return spool


def _is_text(head: bytes) -> bool:
    """Whether the bytes are UTF-8 (a character may be cut at the end) without control bytes."""
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:
            return False
        text = head[: error.start].decode("utf-8")
    return bool(text.strip()) and not any(c < " " and c not in "\t\n\r\f" for c in text)
