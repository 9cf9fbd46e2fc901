"""The example data of the catalogue as sources: `builtin:fruit-fine`, `builtin:wordnet-facts`."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from services.common import catalogue, fetch
from services.common.errors import NotFound, PeerUnavailable, Precondition
from services.gateway.builtin_data import Photo, iter_dataset
from services.gateway.datasets.entries import Entry, Listing, Rejected

_TEXT_LOADERS = ("text-jsonl", "wordnet", "speeches")
"""Loaders of a catalogue's text datasets."""


class BuiltinSource:
    """A dataset of the catalogue, fetched into `cache_dir` where it is not there yet.

    `name` is a dataset's id, with a labelling after a hyphen where it has several. Raises NotFound.
    """

    def __init__(self, name: str, cache_dir: Path, entries: catalogue.Catalogue) -> None:
        self._cache_dir = cache_dir
        self._entry, self._labelling = _find(name, entries)

    def listing(self) -> Listing:
        photos = [Entry(p.name, (p.labels[self._labelling],), p.split) for p in self._photos()]
        return Listing(photos)

    def read(self, wanted: Collection[str]) -> Iterator[tuple[str, bytes | Rejected]]:
        left = set(wanted)
        for photo in self._photos():
            if photo.name in left:
                left.discard(photo.name)
                yield photo.name, photo.data
            if not left:
                return

    def _photos(self) -> Iterator[Photo]:
        try:
            path = fetch.ensure(self._entry, self._cache_dir)
        except fetch.FetchError as error:
            raise PeerUnavailable(str(error), retry_after_s=5.0) from error
        return iter_dataset(self._entry, path)


def check_known(name: str, entries: catalogue.Catalogue) -> None:
    """Raise NotFound unless the catalogue has a dataset of that name, of images or of texts."""
    known = {**_images(entries), **_texts(entries)}
    if name not in known:
        raise _unknown(name, known)


def find_texts(name: str, entries: catalogue.Catalogue) -> tuple[catalogue.Dataset, str]:
    """Return the text dataset of that name and its part. Raises NotFound, Precondition for one of
    images."""
    known = _texts(entries)
    if name in known:
        return known[name]
    if name in _images(entries):
        raise Precondition(f"the built-in dataset {name} holds images, not texts")
    raise _unknown(name, known)


def _find(name: str, entries: catalogue.Catalogue) -> tuple[catalogue.Dataset, str]:
    known = _images(entries)
    if name in known:
        return known[name]
    if name in _texts(entries):
        raise Precondition(f"the built-in dataset {name} holds texts; say kind DATASET_KIND_TEXTS")
    raise _unknown(name, known)


def _images(entries: catalogue.Catalogue) -> dict[str, tuple[catalogue.Dataset, str]]:
    return _named(e for e in _datasets(entries) if e.loader not in _TEXT_LOADERS)


def _texts(entries: catalogue.Catalogue) -> dict[str, tuple[catalogue.Dataset, str]]:
    return _named(e for e in _datasets(entries) if e.loader in _TEXT_LOADERS)


def _datasets(entries: catalogue.Catalogue) -> Iterator[catalogue.Dataset]:
    return (entry for entry in entries if isinstance(entry, catalogue.Dataset))


def _named(found: Iterator[catalogue.Dataset]) -> dict[str, tuple[catalogue.Dataset, str]]:
    """Return every labelling or part by its name: the entry's, with the part behind a hyphen."""
    known: dict[str, tuple[catalogue.Dataset, str]] = {}
    for entry in found:
        known[entry.id] = (entry, entry.labels[0])
        known.update({f"{entry.id}-{one}": (entry, one) for one in entry.labels})
    return known


def _unknown(name: str, known: Collection[str]) -> NotFound:
    there = ", ".join(sorted(known)) or "none of this kind"
    return NotFound(f"no built-in dataset {name!r}; there are {there}", resource=name)
