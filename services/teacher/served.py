"""A classifier with its queue, and the rows that models on one trunk share."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from services.common.batching import Batcher
from services.common.tensors import Array
from services.teacher.models import ImageClassifier, Outputs

Row = tuple[Array, Array]
"""One image's (logits [K] float32, features [D] float16)."""


class RowMemory:
    """Rows of job shards by image digest, least recently used forgotten first.

    Several heads on one trunk are usually asked about the same images; the trunk then runs once.
    Rows of online calls are not kept: their last bits depend on the batch they ran in.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._rows: OrderedDict[tuple[str, str], Row] = OrderedDict()

    def get(self, project: str, digest: str) -> Row | None:
        """Return an image's row, None where it is not remembered."""
        row = self._rows.get((project, digest))
        if row is not None:
            self._rows.move_to_end((project, digest))
        return row

    def forget(self, project: str, *, dry_run: bool = False) -> int:
        """Drop a project's rows and return how many there were."""
        gone = [key for key in self._rows if key[0] == project]
        for key in () if dry_run else gone:
            del self._rows[key]
        return len(gone)

    def put(self, project: str, digest: str, row: Row) -> None:
        """Remember a row."""
        self._rows[(project, digest)] = row
        while len(self._rows) > self._size:
            self._rows.popitem(last=False)


@dataclass(frozen=True)
class ServedModel:
    """A classifier with its queue. Models on the same trunk share the trunk's queue and its
    remembered rows."""

    classifier: ImageClassifier
    batcher: Batcher[Tensor, Row]
    """Image as `ImageClassifier.square` gives it to its row."""
    remembered: RowMemory
    licence: str
    trunk: str
    head: tuple[Array, Array] | None = None
    """(weight [K, D], bias [K]) float32 of a head we trained; None answers with the trunk's own
    logits."""
    single_label: bool = True
    cross_fitted: dict[str, Array] = field(default_factory=dict)
    """Logits [K] by digest of the images a head was trained on, from the fold that did not see
    them."""

    def logits(self, row: Row) -> Array:
        """Return [K] float32. A head reads features rounded to float16, whether remembered or
        not."""
        if self.head is None:
            return row[0]
        weight, bias = self.head
        return np.asarray(weight @ row[1].astype(np.float32) + bias, np.float32)


def rows_of(outputs: Outputs) -> list[Row]:
    """Return a row per image."""
    logits = outputs.logits.numpy()
    features = outputs.features.numpy().astype(np.float16)
    return list(zip(logits, features, strict=True))
