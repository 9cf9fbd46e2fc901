"""Training data of a student: manifest and shards read from the blob store, checked, aligned."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from stillhouse.common.v1 import items_pb2
from stillhouse.student.v1 import student_pb2

from services.common.blobs import BlobStore
from services.common.errors import InvalidInput, Precondition
from services.common.manifest import Manifest
from services.common.presence import Presence, presence, presence_values
from services.common.shards import RegionTable, unpack_regions, unpack_rows
from services.common.tensors import Array, unpack_arrays

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Count = Callable[[int, int], None]


@dataclass(frozen=True)
class Labels:
    """What people said about n items: `hot` bool [n, K], `split` str [n], digests and paths."""

    classes: tuple[str, ...]
    multi_label: bool
    hot: Mask
    split: npt.NDArray[np.str_]
    digests: tuple[str, ...]
    item_ids: tuple[str, ...]

    @property
    def first(self) -> Ints:
        """The label [n] of single-label items."""
        return np.asarray(self.hot.argmax(axis=1), dtype=np.int64)

    def take(self, keep: Ints) -> Labels:
        """The rows `keep`."""
        digests = tuple(self.digests[index] for index in keep)
        ids = tuple(self.item_ids[index] for index in keep)
        hot, split = self.hot[keep], self.split[keep]
        return Labels(self.classes, self.multi_label, hot, split, digests, ids)

    def rows(self, *splits: str) -> Ints:
        """Row numbers of the items of these splits."""
        return np.flatnonzero(np.isin(self.split, splits))


@dataclass(frozen=True)
class TextBank:
    """Embedded words: `text` [M, D] float16 with the means that centre both sides, float32 [D]."""

    text: npt.NDArray[np.float16]
    text_mean: Floats
    image_mean: Floats


@dataclass(frozen=True)
class ConceptData:
    """The items that both the teacher and the encoder could read: logits [n, K], ragged regions."""

    labels: Labels
    logits: Doubles
    embeddings: npt.NDArray[np.float16]
    offsets: Ints

    def presence(self, bank: TextBank) -> Floats:
        """Presence [n, M] of the bank's words in every item."""
        args = (self.embeddings, self.offsets, bank.text, bank.image_mean, bank.text_mean)
        with _fitting():
            return presence_values(*args)

    @property
    def whole_image(self) -> Floats:
        """Embedding [n, D] of the whole images."""
        return self.embeddings[self.offsets[:-1]].astype(np.float32)


def presence_of(embeddings: Array, offsets: Ints, bank: TextBank) -> Presence:
    """Presence of the bank's words; shapes that do not fit raise InvalidInput."""
    with _fitting():
        return presence(embeddings, offsets, bank.text, bank.image_mean, bank.text_mean)


@contextlib.contextmanager
def _fitting() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise InvalidInput(
            f"regions do not fit the concepts: {error}", field="embeddings"
        ) from None


def read_manifest(blobs: BlobStore, project: str, ref: items_pb2.BlobRef) -> Labels:
    """The manifest's labels in its order. Raises NotFound, InvalidInput."""
    manifest = Manifest.from_bytes(blobs.get(project, ref.digest))
    if not manifest.items or len(manifest.classes) < 1:
        raise InvalidInput("manifest: holds no items or no classes", field="manifest")
    hot = np.zeros((len(manifest.items), len(manifest.classes)), bool)
    for row, item in enumerate(manifest.items):
        hot[row, list(item.labels)] = True
    split = np.array([item.split for item in manifest.items])
    digests = tuple(item.digest for item in manifest.items)
    ids = tuple(item.item_id for item in manifest.items)
    return Labels(manifest.classes, manifest.multi_label, hot, split, digests, ids)


def read_rows(
    blobs: BlobStore,
    project: str,
    refs: Sequence[items_pb2.BlobRef],
    name: str,
    shape: tuple[int, int | None],
) -> tuple[Array, Mask]:
    """Rows [n, width] and valid [n] of shards that cover n items. Raises NotFound, InvalidInput."""
    field = f"{name}_shards"
    rows, valid = unpack_rows(name, [blobs.get(project, ref.digest) for ref in refs])
    items, width = shape
    if rows.ndim != 2 or len(rows) != len(valid) or len(rows) != items:
        raise InvalidInput(f"{field}: {rows.shape} rows for {items} items", field=field)
    if width is not None and rows.shape[1] != width:
        raise Precondition(
            f"{field}: {rows.shape[1]} columns, the manifest has {width} classes",
            differences={"classes": f"{rows.shape[1]} in the shards, {width} in the manifest"},
        )
    if rows.dtype.kind != "f" or not np.isfinite(rows[valid]).all():
        raise InvalidInput(f"{field}: values are not finite floats", field=field)
    return rows, valid


def read_bank(
    blobs: BlobStore, project: str, ref: items_pb2.BlobRef, words: int | None
) -> TextBank:
    """Concept embeddings. Raises NotFound, InvalidInput for missing, misfitting or bad arrays."""
    arrays = unpack_arrays(blobs.get(project, ref.digest), what="concept_embeddings")
    missing = {"text", "text_mean", "image_mean"} - set(arrays)
    if missing:
        raise InvalidInput(
            f"concept_embeddings: {sorted(missing)} missing", field="concept_embeddings"
        )
    bank = TextBank(
        arrays["text"].astype(np.float16, copy=False),
        arrays["text_mean"].astype(np.float32, copy=False),
        arrays["image_mean"].astype(np.float32, copy=False),
    )
    check_bank(bank, words)
    return bank


def check_bank(bank: TextBank, words: int | None) -> None:
    """Raise InvalidInput where shapes do not agree or values are not finite."""
    text, dim = bank.text, bank.text.shape[-1]
    fits = text.ndim == 2 and bank.text_mean.shape == bank.image_mean.shape == (dim,)
    if not fits or (words is not None and len(text) != words):
        raise InvalidInput(
            f"concept_embeddings: text {text.shape}, text_mean {bank.text_mean.shape}, image_mean "
            f"{bank.image_mean.shape} for {words} concepts",
            field="concept_embeddings",
        )
    parts: list[npt.NDArray[Any]] = [text, bank.text_mean, bank.image_mean]
    if not all(np.isfinite(part).all() for part in parts):
        raise InvalidInput("concept_embeddings: hold NaN or infinity", field="concept_embeddings")


def read_concept_data(
    blobs: BlobStore, project: str, data: student_pb2.TrainingData, *, whole_image_only: bool
) -> ConceptData:
    """Everything a concept recipe reads, without the items that have no logits or no regions.

    Raises NotFound, InvalidInput, and Precondition where classes or numbers of items differ.
    """
    labels = read_manifest(blobs, project, data.manifest)
    shape = (len(labels.digests), len(labels.classes))
    logits, answered = read_rows(blobs, project, data.teacher_shards, "logits", shape)
    table = unpack_regions([blobs.get(project, ref.digest) for ref in data.region_shards])
    if len(table.valid) != len(labels.digests):
        raise InvalidInput(
            f"region_shards: {len(table.valid)} items, the manifest has {len(labels.digests)}",
            field="region_shards",
        )
    usable = answered & table.valid & (np.diff(table.offsets) > 0)
    keep = np.flatnonzero(usable)
    if not len(keep):
        raise InvalidInput("no item has both teacher logits and regions", field="region_shards")
    embeddings, offsets = _gather(table, keep, whole_image_only=whole_image_only)
    return ConceptData(labels.take(keep), logits[keep].astype(np.float64), embeddings, offsets)


def _gather(table: RegionTable, keep: Ints, *, whole_image_only: bool) -> tuple[Array, Ints]:
    starts, counts = table.offsets[keep], np.diff(table.offsets)[keep]
    if whole_image_only:
        return table.embeddings[starts], np.arange(len(keep) + 1, dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    rows = np.repeat(starts - offsets[:-1], counts) + np.arange(offsets[-1])
    return table.embeddings[rows], offsets
