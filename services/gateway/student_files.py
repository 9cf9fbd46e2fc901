"""A student's files as the gateway reads them: numpy arrays and the card, checked."""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from services.common.blobs import BlobStore
from services.common.errors import InvalidInput
from services.common.tensors import Array, expect, unpack_arrays

Floats = npt.NDArray[np.float32]
_CACHED = 16


@dataclass(frozen=True)
class StudentFile:
    """A linear concept student of K classes on M concepts, D wide.

    `weight` [K, M], `bias` [K], `text` [M, D] float16, `text_mean` [D], `image_mean` [D];
    `influence`
    [K, M] is weight times the class's mean standardised presence.
    """

    weight: Floats
    bias: Floats
    text: Array
    text_mean: Floats
    image_mean: Floats
    influence: Floats
    card: dict[str, Any]

    @property
    def classes(self) -> list[str]:
        """Class names in the order of the rows."""
        return [str(name) for name in self.card["classes"]]

    @property
    def concepts(self) -> list[str]:
        """Words in the order of the columns."""
        return [str(word) for word in self.card["concepts"]]

    @property
    def whole_image_only(self) -> bool:
        """True where the student sees the whole image alone, without segments."""
        return bool(self.card.get("whole_image_only", False))

    @property
    def provenance(self) -> dict[str, str]:
        """Names and digests of what the student was made from."""
        return {str(k): str(v) for k, v in self.card.get("provenance", {}).items()}

    def class_index(self, label: str, *, field: str = "label") -> int:
        """Return a class's row. Raises InvalidInput with the nearest names."""
        return _index(label, self.classes, "class", field)

    def concept_index(self, word: str, *, field: str = "concept") -> int:
        """Return a concept's column. Raises InvalidInput with the nearest words."""
        return _index(word, self.concepts, "concept", field)


class StudentFiles:
    """Reads students from the blob store; the last few stay in memory. Blocking, thread-safe."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._cached = functools.lru_cache(maxsize=_CACHED)(self._load)

    def load(self, project: str, weights_digest: str, card_digest: str) -> StudentFile:
        """Return a student. Raises NotFound, or InvalidInput where its files do not fit
        together."""
        return self._cached(project, weights_digest, card_digest)

    def _load(self, project: str, weights_digest: str, card_digest: str) -> StudentFile:
        arrays = unpack_arrays(self._blobs.get(project, weights_digest), what="student")
        try:
            card = json.loads(self._blobs.get(project, card_digest))
            return _student(arrays, card)
        except (ValueError, KeyError, TypeError) as error:
            message = f"the student's files are not valid: {error!r}"
            raise InvalidInput(message[:300], field="student") from None


def _student(arrays: dict[str, Array], card: dict[str, Any]) -> StudentFile:
    shape = (len(card["classes"]), len(card["concepts"]))
    weight = expect(arrays["weight"], shape=shape, field="weight").astype(np.float32)
    text = expect(arrays["text"], shape=(shape[1], None), field="text")
    width = text.shape[1]
    means = np.asarray(card["class_mean_presence"], np.float32)
    return StudentFile(
        weight=weight,
        bias=expect(arrays["bias"], shape=(shape[0],), field="bias").astype(np.float32),
        text=text,
        text_mean=expect(arrays["text_mean"], shape=(width,), field="text_mean"),
        image_mean=expect(arrays["image_mean"], shape=(width,), field="image_mean"),
        influence=weight * expect(means, shape=shape, field="class_mean_presence"),
        card=card,
    )


def _index(name: str, known: Sequence[str], what: str, field: str) -> int:
    if name in known:
        return known.index(name)
    lower = {one.lower(): one for one in known}
    near = difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.5)
    hint = f"; did you mean {', '.join(repr(lower[one]) for one in near)}?" if near else ""
    message = f"{field}: the student has no {what} {name[:100]!r}{hint}"
    raise InvalidInput(message, field=field)
