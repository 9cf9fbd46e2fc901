"""Where texts come from: a file, a folder of files, an archive of them, a blob, the catalogue."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, Protocol, cast
from urllib.parse import parse_qsl, urlsplit

import fsspec

from services.common import fetch
from services.common.catalogue import Dataset
from services.common.errors import InvalidInput, NotFound, PeerUnavailable
from services.gateway.datasets import speeches, wordnet
from services.gateway.datasets.builtin import find_texts
from services.gateway.datasets.entries import shown
from services.gateway.datasets.readers import (
    ARCHIVES,
    WEB,
    Opener,
    Reading,
    builtin_name,
    check_uri,
    confined_root,
    from_web,
    local_path,
    scheme_of,
    without_fragment,
)
from services.gateway.datasets.text_files import TEXT_TYPES, RowOrNot, name_of_kind, read_rows
from services.gateway.datasets.trees import FolderTree, Tree, archive_tree

_ARCHIVE_HEADS = (b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00")


class TextSource(Protocol):
    """Rows of texts somewhere. Blocking; raises StillhouseError leaves."""

    def rows(self) -> Iterator[RowOrNot]:
        """Yield all rows, in an order that is the same from run to run."""
        ...


class TreeTexts:
    """All text files of a folder or an archive."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    def rows(self) -> Iterator[RowOrNot]:
        names, refused = self._tree.names()
        yield from refused
        wanted = [name for name in names if _is_text(name)]
        if not wanted:
            raise InvalidInput(
                f"no text file ({', '.join(TEXT_TYPES)}) among {len(names):,} files", field="source"
            )
        for name, file in self._tree.streams(wanted):
            yield from read_rows(name, file)


class FileTexts:
    """One file by fsspec URL; a name gives its kind."""

    def __init__(self, url: str, name: str) -> None:
        self._url, self._name = url, name

    def rows(self) -> Iterator[RowOrNot]:
        with fsspec.open(self._url, "rb") as file:
            yield from read_rows(self._name, cast("BinaryIO", file))


class BlobTexts:
    """One uploaded or fetched file that is no archive, its kind told by its content."""

    def __init__(self, opener: Opener) -> None:
        self._open = opener

    def rows(self) -> Iterator[RowOrNot]:
        with self._open() as file:
            name = name_of_kind(file)
        with self._open() as file:
            yield from read_rows(name, file)


class BuiltinTexts:
    """A text dataset of the catalogue, fetched where it is not there yet; `part` is one of its
    labels and `count` how many facts a generated one holds."""

    def __init__(self, entry: Dataset, part: str, count: int, cache_dir: Path) -> None:
        self._entry, self._part, self._count = entry, part, count
        self._cache_dir = cache_dir

    def rows(self) -> Iterator[RowOrNot]:
        try:
            path = fetch.ensure(self._entry, self._cache_dir)
        except fetch.FetchError as error:
            raise PeerUnavailable(str(error), retry_after_s=5.0) from error
        if self._entry.loader == "wordnet":
            yield from wordnet.rows(path, self._part, self._count)
        elif self._entry.loader == "speeches":
            yield from speeches.rows(path, self._part)
        elif path.is_dir():
            yield from TreeTexts(FolderTree(str(path))).rows()
        else:
            yield from FileTexts(str(path), path.name).rows()


def open_text_blob(project: str, digest: str, reading: Reading) -> TextSource:
    """Return the source of an uploaded archive or file. Raises NotFound, DataLoss, InvalidInput."""
    reading.blobs.check(project, digest)
    opener = partial(reading.blobs.open, project, digest)
    if is_archive(opener()):
        return TreeTexts(archive_tree(opener))
    return BlobTexts(opener)


def open_text_uri(uri: str, reading: Reading) -> TextSource:
    """Return the source that a URI names.

    Raises InvalidInput, NotFound, Precondition, or PeerUnavailable where it cannot be reached.
    """
    check_uri(uri, reading)
    if scheme_of(uri) == "builtin":
        entry, part = find_texts(builtin_name(uri), reading.catalogue)
        return BuiltinTexts(entry, part, _fact_count(uri), reading.cache_dir)
    plain = without_fragment(uri)
    url = (local_path(uri) if scheme_of(uri) == "file" else plain).rstrip("/") or "/"
    try:
        if scheme_of(uri) in WEB:
            return _from_web(plain, reading)
        return _by_kind(url, confined_root(uri, reading))
    except FileNotFoundError:
        raise NotFound(f"there is nothing at {shown(plain)}", resource=shown(plain)) from None
    except (OSError, ImportError, ValueError) as error:
        raise PeerUnavailable(f"{shown(plain)} cannot be read: {error}"[:300]) from error


def _fact_count(uri: str) -> int:
    """Return how many facts `builtin:wordnet-facts?facts=80` asks for. Raises InvalidInput."""
    options = dict(parse_qsl(uri.partition("?")[2]))
    text = options.get("facts", str(wordnet.DEFAULT_FACTS))
    if not (text.isascii() and text.isdecimal() and len(text) < 7):
        raise InvalidInput("uri: facts is not a number", field="uri")
    return int(text)


def is_archive(file: BinaryIO) -> bool:
    """Whether a file begins as an archive does; closes it."""
    with file:
        head = file.read(512)
    return head.startswith(_ARCHIVE_HEADS) or head[257:262] == b"ustar"


def _from_web(url: str, reading: Reading) -> TextSource:
    opener = from_web(url, reading)
    return TreeTexts(archive_tree(opener)) if is_archive(opener()) else BlobTexts(opener)


def _by_kind(url: str, confine: Path | None) -> TextSource:
    fs, path = fsspec.core.url_to_fs(url)
    name = posixpath.basename(urlsplit(url).path)
    if fs.isdir(path):
        return TreeTexts(FolderTree(url, confine))
    if not fs.exists(path):
        raise FileNotFoundError(url)
    if name.lower().endswith(ARCHIVES):
        return TreeTexts(archive_tree(lambda: cast("BinaryIO", fsspec.open(url, "rb").open())))
    if not _is_text(name):
        raise InvalidInput(
            f"{shown(name)}: texts are read from {', '.join(TEXT_TYPES)}, folders and archives",
            field="uri",
        )
    return FileTexts(url, name)


def _is_text(name: str) -> bool:
    plain = not any(part.startswith((".", "__MACOSX")) for part in name.split("/"))
    return plain and name.lower().endswith(TEXT_TYPES)
