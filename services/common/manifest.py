"""The dataset manifest: an immutable JSON blob of classes and items, which is what a dataset is."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from services.common.documents import MALFORMED
from services.common.errors import InvalidInput

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Item:
    """One image: `labels` index into the manifest's classes; exactly one where not multi-label."""

    item_id: str
    digest: str
    split: str
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Manifest:
    """Classes and items of a dataset, in a fixed order that shards follow."""

    classes: tuple[str, ...]
    multi_label: bool
    items: tuple[Item, ...]

    def to_bytes(self) -> bytes:
        """Return canonical JSON: the same manifest always gives the same bytes, so the same
        digest."""
        return json.dumps(
            asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=False
        ).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Return the manifest of `data`. Raises InvalidInput where it is not one."""
        try:
            raw = json.loads(data)
            items = tuple(
                Item(
                    str(i["item_id"]),
                    str(i["digest"]),
                    str(i["split"]),
                    tuple(int(k) for k in i["labels"]),
                )
                for i in raw["items"]
            )
            manifest = cls(tuple(str(c) for c in raw["classes"]), bool(raw["multi_label"]), items)
        except MALFORMED as error:
            raise InvalidInput(f"manifest is not valid: {error!r}", field="manifest") from None
        manifest.check()
        return manifest

    def check(self) -> None:
        """Raise InvalidInput for an unknown split, a label out of range or a missing label."""
        for item in self.items:
            if item.split not in SPLITS:
                raise InvalidInput(f"item {item.item_id!r}: split {item.split!r}", field="split")
            if any(not 0 <= label < len(self.classes) for label in item.labels):
                raise InvalidInput(f"item {item.item_id!r}: label out of range", field="labels")
            if not self.multi_label and len(item.labels) != 1:
                raise InvalidInput(
                    f"item {item.item_id!r}: needs exactly one label", field="labels"
                )
