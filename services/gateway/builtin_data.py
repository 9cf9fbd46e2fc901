"""The catalogue's datasets as a stream of photos: name, encoded bytes, labels and split.

Images come as they are stored (JPEG) or as the smallest lossless file (PNG for CIFAR-10's pixel
rows), so that they pass through the same decoder as a user's own. Nothing here keeps more than one
batch in memory.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from services.common.catalogue import Dataset
from services.common.errors import InvalidInput

Split = Literal["train", "val", "test"]

CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
_CIFAR_PX = 32
_CIFAR_ROWS = 10_000
_ROWS_AT_ONCE = 64


@dataclasses.dataclass(frozen=True)
class Photo:
    """One labelled image of a dataset."""

    name: str
    """Unique in the dataset and stable from run to run; a file name with its extension."""
    data: bytes
    """Encoded image (JPEG or PNG)."""
    labels: dict[str, str]
    """Class name by labelling, e.g. {"fine": "Pink-Lady", "coarse": "Apple"}."""
    split: Split


def _split(text: str) -> Split:
    for known in ("train", "val", "test"):
        if text == known:
            return known
    raise InvalidInput(f"unknown split {text[:40]!r}", field="split")


def iter_fruit(path: Path) -> Iterator[Photo]:
    """The 2,054 fruit photos in the parquet's order: labels ``fine`` (14) and ``coarse`` (5), own
    splits.
    """
    columns = ["dataset", "coarse_cat", "finegrained_cat", "image_data"]
    index = 0
    with pq.ParquetFile(path) as table:
        for batch in table.iter_batches(batch_size=_ROWS_AT_ONCE, columns=columns):
            for row in batch.to_pylist():
                labels = {"fine": row["finegrained_cat"], "coarse": row["coarse_cat"]}
                name = f"{index:04d}-{labels['fine']}.jpg"
                yield Photo(name, row["image_data"], labels, _split(row["dataset"]))
                index += 1


def _cifar_file(folder: Path, stem: str) -> NDArray[np.uint8]:
    """uint8 [10000, 32, 32, 3]: one image a row of the file."""
    with Image.open(folder / f"{stem}.png", formats=("PNG",)) as image:
        if image.size != (_CIFAR_PX * _CIFAR_PX, _CIFAR_ROWS):
            raise InvalidInput(f"{stem}.png is {image.size}, not 1024 x 10000 pixels")
        pixels = np.asarray(image.convert("RGB"))
    return pixels.reshape(_CIFAR_ROWS, _CIFAR_PX, _CIFAR_PX, 3)


def _png(pixels: NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", optimize=False)
    return out.getvalue()


def iter_cifar10(folder: Path, per_class: int | None = None) -> Iterator[Photo]:
    """CIFAR-10 as PNGs in the files' order: 50,000 train, then 10,000 test; label ``label``.

    ``per_class`` takes only the first so many of every class and split.
    """
    parts: list[tuple[Split, list[str], str]] = [
        ("train", [f"data_batch_{k}" for k in range(1, 6)], "train_lables.json"),  # spelt so
        ("test", ["test_batch"], "test_lables.json"),
    ]
    for split, stems, label_file in parts:
        labels = json.loads((folder / label_file).read_text())
        taken = dict.fromkeys(CIFAR10_CLASSES, 0)
        for part, stem in enumerate(stems):
            if per_class is not None and min(taken.values()) >= per_class:
                break
            images = _cifar_file(folder, stem)
            for row, label in enumerate(labels[part * _CIFAR_ROWS : (part + 1) * _CIFAR_ROWS]):
                name = CIFAR10_CLASSES[label]
                if per_class is not None and taken[name] >= per_class:
                    continue
                taken[name] += 1
                file = f"{split}-{part * _CIFAR_ROWS + row:05d}-{name}.png"
                yield Photo(file, _png(images[row]), {"label": name}, split)


def iter_dataset(entry: Dataset, path: Path) -> Iterator[Photo]:
    """The photos of a catalogue dataset whose files ``fetch.ensure`` put at ``path``."""
    return iter_fruit(path) if entry.loader == "fruit-parquet" else iter_cifar10(path)
