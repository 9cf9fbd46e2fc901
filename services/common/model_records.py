"""What a project's own language model is: files in the blob store, under the ref `models/{id}`.

A `checkpoint` is a whole transformers folder; an `adapter` is a peft folder on top of `base`, which
is a model of the catalogue or of the project. Weights are safetensors.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from services.common.blobs import check_digest
from services.common.documents import MALFORMED
from services.common.errors import InvalidInput

KIND = "language_model"
_FORMS = ("checkpoint", "adapter")
_SUFFIXES = (".safetensors", ".json", ".txt", ".model", ".jinja")


@dataclass(frozen=True)
class LanguageModelRecord:
    """A language model of a project. `files` maps a plain file name to its blob's digest."""

    form: str
    files: dict[str, str]
    weights_digest: str
    """Digest of the trained tensors alone."""
    tokenizer_digest: str
    base: str = ""
    """Last part of the name of the model under an adapter."""
    base_digest: str = ""
    licence: str = ""
    card: dict[str, Any] = field(default_factory=dict)
    """What it was made from: job, teacher, dataset, settings."""

    def to_bytes(self) -> bytes:
        """Return canonical JSON."""
        return json.dumps(
            {"kind": KIND} | asdict(self), sort_keys=True, ensure_ascii=False
        ).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> LanguageModelRecord:
        """Return the record of `data`. Raises InvalidInput."""
        try:
            raw = json.loads(data)
            if raw.pop("kind", None) != KIND:
                raise InvalidInput("the model is not a language model", field="model")
            record = cls(**raw)
            record._check()
        except MALFORMED as error:
            raise InvalidInput(f"model record is not valid: {error}"[:300], field="model") from None
        return record

    def _check(self) -> None:
        if self.form not in _FORMS or bool(self.base) != (self.form == "adapter"):
            raise ValueError("form and base do not fit together")
        for name, digest in self.files.items():
            if "/" in name or name.startswith(".") or not name.endswith(_SUFFIXES):
                raise ValueError(f"file name {name[:60]!r}")
            check_digest(digest, field="files")
