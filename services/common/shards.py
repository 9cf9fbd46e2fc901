"""Shards: safetensors blobs that hold model outputs for a run of a manifest's items, in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.common.errors import InvalidInput
from services.common.tensors import Array, pack_arrays, unpack_arrays

SHARD_ITEMS = 64
"""Items per shard of a job: small enough to repeat, large enough to keep overhead low."""


def pack_rows(name: str, rows: Sequence[Array | None]) -> bytes:
    """Pack one row per item under `name`, with `valid` [n] uint8; a missing item is a row of
    zeros."""
    width = next((row.shape for row in rows if row is not None), (0,))
    dtype = next((row.dtype for row in rows if row is not None), np.dtype("<f4"))
    table = np.zeros((len(rows), *width), dtype)
    for at, row in enumerate(rows):
        if row is not None:
            table[at] = row
    valid = np.array([row is not None for row in rows], np.uint8)
    return pack_arrays({name: table, "valid": valid})


def unpack_rows(name: str, blobs: Sequence[bytes]) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Return ([n, width] rows, [n] valid) of shards in order. Raises InvalidInput where they do
    not fit."""
    parts = [unpack_arrays(blob, what="shard") for blob in blobs]
    if not parts or any(name not in part or "valid" not in part for part in parts):
        raise InvalidInput(f"shards: `{name}` is missing", field="shards")
    if not all(_is_table(part[name], part["valid"]) for part in parts):
        raise InvalidInput(f"shards: `{name}` is no table of one row an item", field="shards")
    width = max(part[name].shape[1] for part in parts)
    filled = [
        p[name] if p[name].shape[1] == width else np.zeros((len(p["valid"]), width), p[name].dtype)
        for p in parts
    ]
    return np.concatenate(filled), np.concatenate([part["valid"] for part in parts]).astype(bool)


@dataclass(frozen=True)
class RegionTable:
    """Regions of many images, ragged.

    `embeddings` [sum R, D] float16; item i owns rows `offsets[i]:offsets[i + 1]`, whole image
    first; `maps`
    [n, h, w] uint8; `valid` [n] bool (an invalid item owns no rows).
    """

    embeddings: Array
    offsets: npt.NDArray[np.int64]
    maps: npt.NDArray[np.uint8]
    valid: npt.NDArray[np.bool_]

    def item(self, index: int) -> Array:
        """Return item `index`'s regions, [R, D] float16."""
        return self.embeddings[self.offsets[index] : self.offsets[index + 1]]


def pack_regions(items: Sequence[tuple[Array, Array] | None]) -> bytes:
    """Pack (embeddings [R, D] float16, map [h, w] uint8) per item; None is an item without
    regions."""
    present = [item for item in items if item is not None]
    dim = present[0][0].shape[1] if present else 0
    map_shape = present[0][1].shape if present else (0, 0)
    counts = [0 if item is None else len(item[0]) for item in items]
    maps = np.zeros((len(items), *map_shape), np.uint8)
    for at, item in enumerate(items):
        if item is not None:
            maps[at] = item[1]
    rows = [item[0].astype("<f2", copy=False) for item in present]
    return pack_arrays(
        {
            "embeddings": np.concatenate(rows) if rows else np.zeros((0, dim), "<f2"),
            "offsets": np.concatenate([[0], np.cumsum(counts)]).astype("<i8"),
            "maps": maps,
            "valid": np.array([item is not None for item in items], np.uint8),
        }
    )


def unpack_regions(blobs: Sequence[bytes], *, allow_empty: bool = False) -> RegionTable:
    """Return the regions of shards in order. Raises InvalidInput where a shard is malformed.

    Shards without a single region have no width, so they are refused too, unless `allow_empty`.
    """
    parts = [unpack_arrays(blob, what="region shard") for blob in blobs]
    for part in parts:
        _check_regions(part)
    parts = [part for part in parts if len(part["valid"])]
    if not parts:
        raise InvalidInput("region shards: none holds an item", field="region_shards")
    filled = [part for part in parts if len(part["embeddings"])]
    if not filled and not allow_empty:
        raise InvalidInput("region shards: no item could be embedded", field="region_shards")
    filled = filled or parts[:1]
    if len({(p["embeddings"].shape[1:], p["maps"].shape[1:]) for p in filled}) > 1:
        raise InvalidInput("region shards: of different shapes", field="region_shards")
    map_shape = filled[0]["maps"].shape[1:]
    maps = [
        p["maps"] if len(p["embeddings"]) else np.zeros((len(p["valid"]), *map_shape), np.uint8)
        for p in parts
    ]
    counts = np.concatenate([np.diff(part["offsets"]) for part in parts])
    return RegionTable(
        embeddings=np.concatenate([part["embeddings"] for part in filled]),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        maps=np.concatenate(maps),
        valid=np.concatenate([part["valid"] for part in parts]).astype(bool),
    )


_REGION_FORM = {
    "embeddings": (2, "f"),
    "offsets": (1, "i"),
    "maps": (3, "u"),
    "valid": (1, "bu"),
}
"""Arrays of a region shard: how many dimensions each has, and kinds of its elements."""


def _is_table(rows: Array, valid: Array) -> bool:
    return rows.ndim == 2 and rows.dtype.kind in "fiu" and valid.shape == (len(rows),)


def _check_regions(part: dict[str, Array]) -> None:
    missing = {"embeddings", "offsets", "maps", "valid"} - set(part)
    if missing:
        raise InvalidInput(f"region shard: {sorted(missing)} missing", field="region_shards")
    if any(
        part[name].ndim != dimensions or part[name].dtype.kind not in kinds
        for name, (dimensions, kinds) in _REGION_FORM.items()
    ):
        raise InvalidInput("region shard: an array has another form", field="region_shards")
    offsets, n = part["offsets"], len(part["valid"])
    fits = (
        len(offsets) == n + 1
        and offsets[0] == 0
        and (n == 0 or (np.diff(offsets) >= 0).all())
        and offsets[-1] == len(part["embeddings"])
    )
    if not fits or len(part["maps"]) != n:
        raise InvalidInput("region shard: offsets do not fit the embeddings", field="region_shards")
