"""The example photos of the catalogue as a source: `builtin:fruit-fine`, `builtin:cifar10`."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from services.common import catalogue, fetch
from services.common.errors import NotFound, PeerUnavailable
from services.gateway.builtin_data import Photo, iter_dataset
from services.gateway.datasets.entries import Entry, Listing, Rejected


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


def _find(name: str, entries: catalogue.Catalogue) -> tuple[catalogue.Dataset, str]:
    known: dict[str, tuple[catalogue.Dataset, str]] = {}
    for entry in entries:
        if isinstance(entry, catalogue.Dataset):
            known[entry.id] = (entry, entry.labels[0])
            known.update({f"{entry.id}-{one}": (entry, one) for one in entry.labels})
    if name not in known:
        raise NotFound(
            f"no built-in dataset {name!r}; there are {', '.join(sorted(known))}", resource=name
        )
    return known[name]
