"""Read a safetensors file's header and digest its contents, with no tensor library."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

_MAX_HEADER_BYTES = 64 << 20
_CHUNK = 1 << 20


class WeightsError(ValueError):
    """The file is not a well-formed safetensors file."""


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header (name -> {dtype, shape, data_offsets}) and the byte offset where data starts."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
            raise WeightsError(f"{path.name} is not a safetensors file")
        try:
            header = json.loads(file.read(length))
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise WeightsError(f"{path.name} is not a safetensors file") from error
    if not isinstance(header, dict):
        raise WeightsError(f"{path.name} is not a safetensors file")
    return header, 8 + length


def content_digest(path: Path) -> str:
    """SHA-256 hex over the tensors, sorted by name: name, dtype, shape, then the bytes.

    It does not depend on the order of tensors, the header's spacing or the metadata, so two writers
    of the same weights agree. Raises WeightsError on a malformed file.
    """
    header, start = read_header(path)
    digest = hashlib.sha256()
    size = path.stat().st_size
    with path.open("rb") as file:
        for name in sorted(n for n in header if n != "__metadata__"):
            try:
                item = header[name]
                begin, end = (start + int(x) for x in item["data_offsets"])
                label = json.dumps([name, item["dtype"], item["shape"]])
            except (KeyError, TypeError, ValueError) as error:
                raise WeightsError(f"{path.name}: malformed entry {name!r}") from error
            if not start <= begin <= end <= size:
                raise WeightsError(f"{path.name}: {name!r} lies outside the file")
            digest.update(label.encode() + b"\n")
            file.seek(begin)
            remaining = end - begin
            while remaining:
                chunk = file.read(min(_CHUNK, remaining))
                digest.update(chunk)
                remaining -= len(chunk)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 hex of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
