from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from services.common.weights import WeightsError, content_digest, read_header


def raw(header: object, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_digest_ignores_order_and_metadata(tmp_path: Path) -> None:
    a, b = np.arange(6, dtype=np.float32), np.ones((2, 2), np.int64)
    save_file({"a": a, "b": b}, tmp_path / "one")
    save_file({"b": b, "a": a}, tmp_path / "two", metadata={"note": "other"})
    assert content_digest(tmp_path / "one") == content_digest(tmp_path / "two")


@pytest.mark.parametrize(
    "other",
    [
        {"a": np.arange(6, dtype=np.float32).reshape(2, 3)},
        {"c": np.arange(6, dtype=np.float32)},
        {"a": np.arange(1, 7, dtype=np.float32)},
        {"a": np.arange(6, dtype=np.int32)},
    ],
)
def test_digest_sees_shape_name_value_and_dtype(
    tmp_path: Path, other: dict[str, np.ndarray]
) -> None:
    save_file({"a": np.arange(6, dtype=np.float32)}, tmp_path / "one")
    save_file(other, tmp_path / "two")
    assert content_digest(tmp_path / "one") != content_digest(tmp_path / "two")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04pickle",
        (1 << 60).to_bytes(8, "little") + b"{}",
        raw([1], b""),
        raw({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 800]}}, bytes(8)),
        raw({"a": {"dtype": "F32", "shape": [2], "data_offsets": [-4, 4]}}, bytes(8)),
        raw({"a": {"dtype": "F32", "shape": [2]}}, bytes(8)),
    ],
)
def test_malformed_files_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(WeightsError):
        content_digest(path)


def test_header_offset(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(raw({"__metadata__": {}}, b"1234"))
    header, start = read_header(tmp_path / "x")
    assert header == {"__metadata__": {}}
    assert (tmp_path / "x").read_bytes()[start:] == b"1234"
