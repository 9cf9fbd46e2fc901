"""Shards of a teacher's outputs for augmented views, found by image digest.

digests       [n, 32] uint8       SHA-256 of the encoded images
logits        [n, views, K] float16
features      [n, views, D] float16, where they were asked for
valid         [n] uint8           0 where an image could not be read; its rows are zeros
augmentation  [32] uint8          digest of the augmentation
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.common.augmentation import Augmentation
from services.common.errors import InvalidInput, Precondition
from services.common.tensors import Array, pack_arrays, unpack_arrays

_HALF = float(np.finfo(np.float16).max)
FIELD = "view_shards"


@dataclass(frozen=True)
class ViewRow:
    """One image's outputs: logits [views, K], features [views, D] or None."""

    logits: Array
    features: Array | None = None


@dataclass(frozen=True)
class ViewTable:
    """Outputs of many images, those alone that could be read."""

    rows: dict[str, int]
    """Row by image digest."""
    logits: npt.NDArray[np.float16]
    """[n, views, K]."""
    features: npt.NDArray[np.float16] | None
    """[n, views, D]."""


def pack_views(
    digests: Sequence[str], rows: Sequence[ViewRow | None], augmentation: Augmentation
) -> bytes:
    """Pack one row per image, in order; None is an image that could not be read."""
    present = [row for row in rows if row is not None]
    valid = np.array([row is not None for row in rows], np.uint8)
    arrays = {
        "digests": _raw(digests),
        "valid": valid,
        "augmentation": _raw([augmentation.digest])[0],
        "logits": _table([row.logits for row in present], valid),
    }
    features = [row.features for row in present if row.features is not None]
    if features:
        arrays["features"] = _table(features, valid)
    return pack_arrays(arrays)


def unpack_views(blobs: Sequence[bytes], augmentation: Augmentation, classes: int) -> ViewTable:
    """The rows of shards. Raises InvalidInput where a shard is malformed or holds values that are
    not finite, Precondition where it was made for other views or another number of classes.
    """
    parts = [unpack_arrays(blob, what="view shard") for blob in blobs]
    for part in parts:
        _check(part, augmentation, classes)
    parts = [part for part in parts if part["valid"].any()]
    if not parts:
        raise InvalidInput("view_shards: no image could be read", field=FIELD)
    keep = [part["valid"].astype(bool) for part in parts]
    digests = [
        bytes(row).hex()
        for part, kept in zip(parts, keep, strict=True)
        for row in part["digests"][kept]
    ]
    return ViewTable(
        {digest: row for row, digest in enumerate(digests)},
        _joined([part["logits"] for part in parts], keep),
        _joined([part["features"] for part in parts], keep)
        if all("features" in part for part in parts)
        else None,
    )


def _raw(digests: Sequence[str]) -> npt.NDArray[np.uint8]:
    """[n, 32] uint8 of hexadecimal digests."""
    return np.frombuffer(bytes.fromhex("".join(digests)), np.uint8).reshape(-1, 32)


def _table(present: Sequence[Array], valid: npt.NDArray[np.uint8]) -> npt.NDArray[np.float16]:
    shape = present[0].shape if present else (0, 0)
    table = np.zeros((len(valid), *shape), "<f2")
    if present:
        table[valid.astype(bool)] = np.clip(np.stack(present), -_HALF, _HALF)
    return table


def _joined(parts: Sequence[Array], keep: Sequence[Array]) -> npt.NDArray[np.float16]:
    if len({part.shape[1:] for part in parts}) != 1:
        raise InvalidInput("view_shards: shards of different shapes", field=FIELD)
    joined = np.concatenate([part[kept] for part, kept in zip(parts, keep, strict=True)])
    if joined.dtype.kind != "f" or not np.isfinite(joined).all():
        raise InvalidInput("view_shards: values are not finite floats", field=FIELD)
    return joined.astype(np.float16, copy=False)


def _check(part: dict[str, Array], augmentation: Augmentation, classes: int) -> None:
    missing = {"digests", "logits", "valid", "augmentation"} - set(part)
    if missing:
        raise InvalidInput(f"view shard: {sorted(missing)} missing", field=FIELD)
    if part["valid"].ndim != 1 or part["valid"].dtype.kind not in "bu":
        raise InvalidInput("view shard: `valid` is no list of flags", field=FIELD)
    made, n = bytes(part["augmentation"]).hex(), len(part["valid"])
    if made != augmentation.digest:
        raise Precondition(
            "view_shards: made for other views than the recipe's augmentation gives",
            differences={"augmentation": f"{made[:12]} instead of {augmentation.digest[:12]}"},
        )
    tables = [part[name] for name in ("logits", "features") if name in part]
    fits = all(one.ndim == 3 and len(one) == n for one in tables)
    if not fits or part["digests"].shape != (n, 32) or part["digests"].dtype != np.uint8:
        raise InvalidInput("view shard: shapes do not fit together", field=FIELD)
    views, columns = part["logits"].shape[1:]
    if part["valid"].any() and (views, columns) != (augmentation.views, classes):
        raise Precondition(
            f"view_shards: {columns} columns in {views} views, the manifest has {classes} classes",
            differences={"classes": f"{columns} in the shards, {classes} in the manifest"},
        )
