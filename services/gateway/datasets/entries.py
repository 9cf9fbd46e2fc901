"""What a source of images is: entries that can be listed cheaply, and their bytes in a stream."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Protocol

MAX_ITEMS = 500_000
MAX_ID_CHARS = 256
MAX_LABEL_CHARS = 100
_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class Entry:
    """One image of a source before its bytes are read.

    `split` is empty where the source has none; `labels` are class names.
    """

    item_id: str
    labels: tuple[str, ...]
    split: str = ""


@dataclass(frozen=True)
class Rejected:
    """A file that does not become an item, and why, for people."""

    path: str
    reason: str


@dataclass
class Listing:
    """What a source holds. `classes` fixes the order of the classes; empty means sorted by name."""

    entries: list[Entry]
    multi_label: bool = False
    classes: tuple[str, ...] = ()
    rejected: list[Rejected] = field(default_factory=list)


class Source(Protocol):
    """A labelled set of images somewhere. Blocking; raises StillhouseError leaves."""

    def listing(self) -> Listing:
        """Return all entries without reading their images."""
        ...

    def read(self, wanted: Collection[str]) -> Iterator[tuple[str, bytes | Rejected]]:
        """Yield (item_id, encoded image or why not) of the wanted entries, in the source's order.

        The order is the same from run to run.
        """
        ...


def split_of(name: str) -> str:
    """Return `train`, `val` or `test` for a usual name of a split, else an empty string."""
    return _SPLITS.get(name.strip().lower(), "")


def clean_label(text: str) -> str:
    """Return a class name in Unicode normal form C without surrounding blanks; empty if unusable.

    One name typed on two systems may be composed differently, which would make two classes.
    """
    label = unicodedata.normalize("NFC", text).strip()
    printable = all(c.isprintable() for c in label)
    return label if printable and 0 < len(label) <= MAX_LABEL_CHARS else ""


def shown(path: str) -> str:
    """Return a path that can be sent as UTF-8, cut to a length that fits a message."""
    return path.encode("utf-8", "backslashreplace").decode()[:MAX_ID_CHARS]


def path_problem(path: str) -> str:
    """Say why a path cannot be an item's id; empty where it can."""
    if len(path) > MAX_ID_CHARS:
        return f"its path is longer than {MAX_ID_CHARS} characters"
    if not path.isprintable():
        return "its path holds characters that are not text"
    return ""
