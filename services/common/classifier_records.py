"""What a project's own image classifier is: weights in the blob store, under the ref `models/{id}`.

The student service writes the record as a training run's card; whoever names it under a ref has
TeacherService serve it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from services.common.blobs import check_digest
from services.common.catalogue import InputSpec
from services.common.documents import MALFORMED
from services.common.errors import InvalidInput

KIND = "image_classifier"


@dataclass(frozen=True)
class ClassifierRecord:
    """A trained classifier."""

    architecture: str
    """timm's name, or `small-cnn`."""
    classes: tuple[str, ...]
    single_label: bool
    weights: str
    """Digest of a safetensors blob: the network's tensors by name."""
    input: InputSpec
    variant: str = ""
    licence: str = ""
    card: dict[str, Any] = field(default_factory=dict)
    """What it was made from: teacher, data, settings."""

    def to_bytes(self) -> bytes:
        """Return canonical JSON."""
        fields = {
            "kind": KIND,
            "architecture": self.architecture,
            "classes": list(self.classes),
            "single_label": self.single_label,
            "weights": self.weights,
            "input": self.input.model_dump(mode="json"),
            "variant": self.variant,
            "licence": self.licence,
            "card": self.card,
        }
        return json.dumps(fields, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> ClassifierRecord:
        """Return the record of `data`. Raises InvalidInput."""
        try:
            raw = json.loads(data)
            if raw["kind"] != KIND:
                raise ValueError("the model is not an image classifier of a training run")
            record = cls(
                architecture=str(raw["architecture"]),
                classes=tuple(str(name) for name in raw["classes"]),
                single_label=bool(raw["single_label"]),
                weights=check_digest(str(raw["weights"]), field="weights"),
                input=InputSpec.model_validate(raw["input"]),
                variant=str(raw.get("variant", "")),
                licence=str(raw.get("licence", "")),
                card=dict(raw.get("card", {})),
            )
        except MALFORMED as error:
            raise InvalidInput(f"model record is not valid: {error}"[:300], field="model") from None
        if not record.classes or len(set(record.classes)) != len(record.classes):
            raise InvalidInput("model record: classes are not unique", field="model")
        return record
