"""Unsigned LEB128 varints, whole arrays at a time: seven bits a byte, the lowest first."""

from __future__ import annotations

import numpy as np

from services.common.errors import InvalidInput
from services.common.tensors import Array

MAX_BYTES = 5
"""Longest varint: 35 bits."""


def encode_varints(values: Array) -> bytes:
    """Return the varints of integers [n] in 0 .. 2**35 - 1, one behind the other."""
    values = np.asarray(values, np.int64)
    if len(values) and (int(values.min()) < 0 or int(values.max()) >> (7 * MAX_BYTES)):
        raise ValueError(f"varints hold 0 to 2**{7 * MAX_BYTES} - 1")
    shifts = 7 * np.arange(MAX_BYTES)
    groups = values[:, None] >> shifts  # [n, 5]: what is left from each byte on
    used = (groups > 0) | (shifts == 0)
    more = np.concatenate([used[:, 1:], np.zeros((len(values), 1), bool)], axis=1)
    return bytes(((groups & 127) | (more << 7)).astype(np.uint8)[used].tobytes())


def varint_sizes(values: Array) -> Array:
    """Bytes that each of `values` takes, int64 [n]."""
    bounds = 1 << (7 * np.arange(1, MAX_BYTES))
    return 1 + np.searchsorted(bounds, np.asarray(values, np.int64), side="right")


def decode_varints(data: Array, count: int) -> tuple[Array, Array]:
    """Read `count` varints from uint8 `data`; returns (values int64 [count], the bytes after them).

    Raises InvalidInput where there are fewer, or one is longer than five bytes.
    """
    window = data[: count * MAX_BYTES]
    ends = np.flatnonzero(window < 128)[:count]
    if len(ends) < count:
        raise InvalidInput("a varint is cut off or too long", field="targets")
    if count == 0:
        return np.zeros(0, np.int64), data
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if int(lengths.max()) > MAX_BYTES:
        raise InvalidInput("a varint is cut off or too long", field="targets")
    used = window[: int(ends[-1]) + 1].astype(np.int64) & 127
    places = np.arange(len(used)) - np.repeat(starts, lengths)
    return np.add.reduceat(used << (7 * places), starts), data[int(ends[-1]) + 1 :]
