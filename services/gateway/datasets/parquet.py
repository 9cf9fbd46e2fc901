"""Parquet files with image bytes, as the Hugging Face datasets library and many others write
them."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from services.common.errors import InvalidInput
from services.gateway.datasets.entries import (
    MAX_ITEMS,
    Entry,
    Listing,
    Rejected,
    clean_label,
    shown,
    split_of,
)

_IMAGE = ("image", "img", "image_data", "image_bytes", "bytes", "jpeg", "jpg", "png", "data")
_LABEL = ("label", "labels", "class", "class_name", "category", "target", "fine_label", "y")
_SPLIT = ("split", "dataset", "subset", "partition")
_ROWS_AT_ONCE = 32
_MAX_GROUP_BYTES = 8 << 30


@dataclass(frozen=True)
class Columns:
    """Which columns hold what; an empty name means that it is to be found out."""

    image: str = ""
    label: str = ""
    split: str = ""


class ParquetSource:
    """Parquet files by fsspec URL; rows are items, named by file and row number.

    The label is a column of text, of integers with class names in the file's metadata, or of lists
    of
    either (multi-label). Without a split column the file's name says the split, if it does.
    """

    def __init__(self, urls: Sequence[str], columns: Columns, *, max_bytes: int) -> None:
        self._urls = sorted(urls)
        self._given = columns
        self._max_bytes = max_bytes

    def listing(self) -> Listing:
        """Return the entries. Raises InvalidInput where a column cannot be found."""
        found, names = Listing([]), dict[str, None]()
        for url in self._urls:
            with _opened(url) as file:
                columns = _detect(file.schema_arrow, self._given)
                classes = _class_names(file.schema_arrow, columns.label)
                found.multi_label |= _is_list(file.schema_arrow.field(columns.label).type)
                names.update(dict.fromkeys(filter(None, map(clean_label, classes))))
                for row, cells in _rows(file, [columns.label, columns.split]):
                    entry = _entry(url, row, cells, columns, classes)
                    if entry.labels or found.multi_label:
                        found.entries.append(entry)
                    else:
                        found.rejected.append(Rejected(entry.item_id, "it has no usable label"))
        found.classes = tuple(names)
        return found

    def read(self, wanted: Collection[str]) -> Iterator[tuple[str, bytes | Rejected]]:
        left = set(wanted)
        for url in self._urls:
            with _opened(url) as file:
                image = _detect(file.schema_arrow, self._given).image
                for row, cells in _rows(file, [image]):
                    if (name := _item_id(url, row)) in left:
                        yield name, self._bytes(name, cells[image])

    def _bytes(self, name: str, cell: Any) -> bytes | Rejected:
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(data, bytes):
            return Rejected(name, "the row holds no image bytes")
        if len(data) > self._max_bytes:
            return Rejected(name, f"larger than {self._max_bytes:,} bytes")
        return data


@contextmanager
def _opened(url: str) -> Iterator[pq.ParquetFile]:
    """Open a file of a sane size. Raises InvalidInput where it is not parquet."""
    with fsspec.open(url, "rb") as raw:
        try:
            with pq.ParquetFile(raw) as file:
                meta = file.metadata
                groups = [meta.row_group(i).total_byte_size for i in range(meta.num_row_groups)]
                if meta.num_rows > MAX_ITEMS or max(groups, default=0) > _MAX_GROUP_BYTES:
                    raise InvalidInput(f"{shown(url)} is larger than the limit", field="uri")
                yield file
        except (pa.ArrowException, OSError) as error:
            text = f"{shown(url)} cannot be read as parquet: {error}"
            raise InvalidInput(text[:300], field="uri") from None


def _rows(file: pq.ParquetFile, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    at, wanted = 0, [name for name in columns if name]
    for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=wanted):
        for row in batch.to_pylist():
            yield at, cast("dict[str, Any]", row)
            at += 1


def _item_id(url: str, row: int) -> str:
    stem = posixpath.basename(url).removesuffix(".parquet")
    return f"{shown(stem)[:200]}/{row:07d}"


def _entry(
    url: str, row: int, cells: dict[str, Any], columns: Columns, classes: Sequence[str]
) -> Entry:
    value = cells[columns.label]
    raw = value if isinstance(value, list) else [value]
    labels = [clean_label(_label(one, classes)) for one in raw if one is not None]
    split = split_of(str(cells.get(columns.split) or "")) if columns.split else _file_split(url)
    return Entry(_item_id(url, row), tuple(dict.fromkeys(filter(None, labels))), split)


def _label(value: Any, classes: Sequence[str]) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and classes:
        return classes[value] if 0 <= value < len(classes) else ""
    return str(value)


def _file_split(url: str) -> str:
    return split_of(posixpath.basename(url).replace(".", "-").split("-")[0])


def _detect(schema: pa.Schema, given: Columns) -> Columns:
    """Find the columns. Raises InvalidInput saying what there is."""
    image = given.image or _first(schema, _IMAGE, _holds_bytes)
    label = given.label or _first(schema, _LABEL, lambda kind: not _holds_bytes(kind))
    split = given.split or _first(schema, _SPLIT, lambda kind: pa.types.is_string(kind))
    for what, name in (("image", image), ("label", label)):
        if name not in schema.names:
            raise InvalidInput(
                f"no column for the {what} found among {', '.join(schema.names)[:200]}: "
                f"name it by `#{what}=COLUMN` at the end of the URI",
                field="uri",
            )
    if split and split not in schema.names:
        raise InvalidInput(f"there is no column {split!r} for the split", field="uri")
    return Columns(image, label, split)


def _first(schema: pa.Schema, names: Sequence[str], fits: Any) -> str:
    kinds = {field.name.lower(): field for field in schema}
    return next((kinds[n].name for n in names if n in kinds and fits(kinds[n].type)), "")


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _class_names(schema: pa.Schema, label: str) -> list[str]:
    """Names of a Hugging Face ClassLabel column, from the schema's metadata; empty if there are
    none."""
    try:
        raw = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        feature = raw["info"]["features"][label]
        feature = feature.get("feature", feature) if isinstance(feature, dict) else feature[0]
        return [str(name) for name in feature["names"]]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return []
