"""Writes predictions to a parquet or CSV file, batch by batch."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from stillhouse.gateway.v1 import students_pb2

from stillhouse_client.errors import InvalidRequest, from_status
from stillhouse_client.tensors import to_floats

Row = dict[str, str | float | None]


class Sink(Protocol):
    """Where rows go."""

    def write(self, rows: Sequence[Row]) -> None:
        """Append rows."""

    def close(self) -> None:
        """Finish the file."""


def rows_of(response: students_pb2.PredictImagesResponse) -> list[Row]:
    """Return one row per image: item, label, its probability, `error`, `p:<class>` per class."""
    rows: list[Row] = []
    for result in response.results:
        row: Row = {"item": result.item_id, "label": None, "probability": None, "error": None}
        row |= {f"p:{label}": None for label in response.classes}
        if result.WhichOneof("outcome") == "error":
            row["error"] = from_status(result.error).message
        else:
            values = to_floats(result.prediction.probabilities)
            row["label"] = result.prediction.label
            by_class = dict(zip(response.classes, values.tolist(), strict=True))
            row["probability"] = by_class.get(result.prediction.label)
            row |= {f"p:{label}": value for label, value in by_class.items()}
        rows.append(row)
    return rows


class Writer:
    """A prediction file that appears only once it is complete."""

    def __init__(self, path: Path, classes: Sequence[str]) -> None:
        """Open `path`, by its ending as parquet or CSV. Raises InvalidRequest for another."""
        makers: dict[str, Callable[[Path, Sequence[str]], Sink]] = {
            ".parquet": _Parquet,
            ".csv": _Csv,
        }
        make = makers.get(path.suffix.lower())
        if make is None:
            raise InvalidRequest(f"{path.name} is not a kind of file I write", hint=_KINDS)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._part = path.with_name(path.name + ".part")
        columns = ["item", "label", "probability", "error", *(f"p:{label}" for label in classes)]
        self._sink: Sink = make(self._part, columns)

    def write(self, rows: Sequence[Row]) -> None:
        """Append rows."""
        self._sink.write(rows)

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._sink.close()
        if error is None:
            self._part.replace(self._path)
        else:
            self._part.unlink()


_KINDS = "end it in .parquet or .csv"
_TEXT = ("item", "label", "error")


class _Parquet:
    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        fields = [(c, pa.string() if c in _TEXT else pa.float64()) for c in columns]
        self._schema = pa.schema(fields)
        self._writer = pq.ParquetWriter(path, self._schema)

    def write(self, rows: Sequence[Row]) -> None:
        self._writer.write_table(pa.Table.from_pylist(list(rows), schema=self._schema))

    def close(self) -> None:
        self._writer.close()


class _Csv:
    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self._file = path.open("w", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, list(columns))
        self._writer.writeheader()

    def write(self, rows: Sequence[Row]) -> None:
        self._writer.writerows(rows)

    def close(self) -> None:
        self._file.close()
