"""Choose the reader of a URI or an uploaded archive, and say which URIs a caller may name."""

from __future__ import annotations

import posixpath
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import parse_qsl, unquote, urlsplit

import fsspec

from services.common.blobs import BlobStore
from services.common.catalogue import Catalogue
from services.common.errors import InvalidInput, NotFound, PeerUnavailable, Precondition
from services.common.hosts import is_loopback
from services.common.outbound import Addresses
from services.gateway.datasets.builtin import BuiltinSource, check_known
from services.gateway.datasets.entries import Source, shown
from services.gateway.datasets.layouts import TreeSource
from services.gateway.datasets.parquet import Columns, ParquetSource
from services.gateway.datasets.trees import FolderTree, archive_tree
from services.gateway.settings import GatewaySettings

ARCHIVES = (".zip", ".tar", ".tgz", ".tbz2", ".txz", ".gz", ".bz2", ".xz")
_TABLES = (".csv", ".jsonl")
MAX_URI_CHARS = 4096
WEB = ("http", "https")
_WEB_S = 60.0
"""Longest silence of a web server."""
Opener = Callable[[], BinaryIO]


@dataclass(frozen=True)
class UriPolicy:
    """Which URIs callers may name: reading files of the gateway's host is for those who own it.

    On loopback files of the host are. Else local files must lie below `file_roots`, and remote ones
    have a scheme of `schemes`: a URL that the gateway fetches could reach hosts that callers
    cannot. For the same reason http(s) goes to `addresses` alone, everywhere. What lies in `hidden`
    is nobody's: the blob store holds the data of all projects.
    """

    loopback: bool
    file_roots: tuple[Path, ...] = ()
    addresses: Addresses = Addresses()
    hidden: tuple[str, ...] = ()
    schemes: tuple[str, ...] = ("s3", "gs", "gcs", "az", "hf")

    @classmethod
    def for_host(
        cls,
        host: str,
        file_roots: Sequence[Path] = (),
        *,
        everybody: bool = True,
        addresses: Addresses = Addresses(),  # noqa: B008  it is frozen
        hidden: Sequence[str] = (),
    ) -> UriPolicy:
        """Return the policy of a gateway that listens on `host`. Where it asks callers who they are
        they are not `everybody` of this host, and have no files there by themselves."""
        return cls(everybody and is_loopback(host), tuple(file_roots), addresses, tuple(hidden))

    def check(self, uri: str) -> None:
        """Raise InvalidInput for a malformed URI, Precondition for one that is not allowed."""
        scheme = scheme_of(uri)
        if "::" in uri or "\0" in uri or len(uri) > MAX_URI_CHARS:
            raise InvalidInput("uri: chained and overlong URIs are not read", field="uri")
        if scheme == "builtin":
            return
        if scheme in WEB:
            self.addresses.split(without_fragment(uri))
            return
        self._check_hidden(uri)
        if self.loopback:
            return
        if scheme != "file":
            if scheme not in self.schemes:
                raise Precondition(
                    f"this gateway does not read {scheme}: URIs; upload an archive instead"
                )
        elif self.confine(uri) is None:
            raise Precondition(
                "this gateway serves others than its own host, so it reads no local files outside "
                "of its file roots (GATEWAY_FILE_ROOTS); upload an archive instead"
            )

    def _check_hidden(self, uri: str) -> None:
        """Refuse what is in a hidden place; for others than the host also what holds one."""
        asked = _place(uri)
        for one in self.hidden:
            place = _place(one)
            if _is_below(asked, place) or (not self.loopback and _is_below(place, asked)):
                raise Precondition(
                    "this holds the gateway's own data, of all projects; give the folder or the "
                    "bucket that the dataset itself lies in"
                )

    def confine(self, uri: str) -> Path | None:
        """Return the file root that a local URI lies in; None where it lies in none."""
        path = Path(local_path(uri)).resolve()
        roots = (root.resolve() for root in self.file_roots)
        return next((root for root in roots if path.is_relative_to(root)), None)


@dataclass(frozen=True)
class Reading:
    """What readers need: limits, the policy, the catalogue's data and the blob store."""

    policy: UriPolicy
    blobs: BlobStore
    catalogue: Catalogue
    cache_dir: Path
    max_image_bytes: int
    max_web_bytes: int = 8 << 30
    """Largest file that is fetched by http(s)."""
    stopping: Callable[[], bool] = lambda: False
    """Whether a download is to be given up."""

    @classmethod
    def of(
        cls,
        settings: GatewaySettings,
        blobs: BlobStore,
        catalogue: Catalogue,
        addresses: Addresses,
    ) -> Reading:
        """Return what a gateway's settings allow: the same for callers and for who checks later."""
        policy = UriPolicy.for_host(
            settings.host,
            settings.file_roots,
            everybody=settings.auth == "none",
            addresses=addresses,
            hidden=[settings.blob_url],
        )
        return cls(policy, blobs, catalogue, settings.cache_dir, settings.max_image_bytes)


def scheme_of(uri: str) -> str:
    """Return a URI's scheme in lower case; a plain path has `file`."""
    if uri.lower().startswith("builtin:"):
        return "builtin"
    scheme = uri.partition("://")[0] if "://" in uri else ("file" if uri[:5] == "file:" else "")
    return "file" if scheme.lower() in ("", "file", "local") else scheme.lower()


def local_path(uri: str) -> str:
    """Return the path of a local URI, without its fragment."""
    plain, _ = _fragment(uri)
    for prefix in ("file://", "local://", "file:"):
        if plain.startswith(prefix):
            return unquote(urlsplit(plain).path) if prefix == "file://" else plain[len(prefix) :]
    return plain


def _place(uri: str) -> tuple[str, ...]:
    """Return what a URI names as parts that can be compared, links followed."""
    if scheme_of(uri) == "file":
        return Path(local_path(uri)).resolve().parts
    scheme, _, rest = without_fragment(uri).partition("://")
    scheme = {"s3a": "s3", "gcs": "gs"}.get(scheme.lower(), scheme.lower())
    path = posixpath.normpath(unquote(rest.partition("?")[0])).strip("/")
    return (f"{scheme}:", *(part for part in path.split("/") if part not in ("", ".")))


def _is_below(place: tuple[str, ...], above: tuple[str, ...]) -> bool:
    return place[: len(above)] == above


def check_uri(uri: str, reading: Reading) -> None:
    """Check what can be known at once. Raises InvalidInput, NotFound or Precondition."""
    if not uri.strip():
        raise InvalidInput("uri: one of uri, archive is required", field="uri")
    reading.policy.check(uri)
    if scheme_of(uri) == "builtin":
        check_known(builtin_name(uri), reading.catalogue)
    elif scheme_of(uri) == "file" and not Path(local_path(uri)).exists():
        raise NotFound(f"there is nothing at {shown(uri)} on the gateway's host", resource=uri)


def open_archive(project: str, digest: str, reading: Reading) -> Source:
    """Return the source of an uploaded archive. Raises NotFound, DataLoss or InvalidInput."""
    reading.blobs.check(project, digest)
    tree = archive_tree(partial(reading.blobs.open, project, digest))
    return TreeSource(tree, max_bytes=reading.max_image_bytes)


def open_uri(uri: str, reading: Reading) -> Source:
    """Return the source that a URI names.

    Raises InvalidInput, NotFound, Precondition, or PeerUnavailable where it cannot be reached.
    """
    check_uri(uri, reading)
    if scheme_of(uri) == "builtin":
        return _builtin(uri, reading)
    plain, options = _fragment(uri)
    url = local_path(uri) if scheme_of(uri) == "file" else plain
    url = url.rstrip("/") or "/"
    confine = confined_root(uri, reading)
    try:
        if scheme_of(uri) in WEB:
            return TreeSource(
                archive_tree(from_web(plain, reading)), max_bytes=reading.max_image_bytes
            )
        return _by_kind(url, options, confine, reading)
    except (OSError, ImportError, ValueError) as error:
        if isinstance(error, FileNotFoundError):
            raise NotFound(f"there is nothing at {shown(plain)}", resource=shown(plain)) from None
        raise PeerUnavailable(f"{shown(plain)} cannot be read: {error}"[:300]) from error


def from_web(url: str, reading: Reading) -> Opener:
    """Fetch an archive or a file, and return what opens it: nothing else than this one request, and
    those that it is redirected to, goes out. Blocking."""
    held = tempfile.NamedTemporaryFile()  # noqa: SIM115  lives as long as what opens it
    reading.policy.addresses.get(
        url,
        cast("BinaryIO", held),
        timeout_s=_WEB_S,
        most=reading.max_web_bytes,
        stopping=reading.stopping,
    )
    held.flush()
    return partial(_reopen, held)


def _reopen(held: Any) -> BinaryIO:
    return open(held.name, "rb")


def _by_kind(url: str, options: dict[str, str], confine: Path | None, reading: Reading) -> Source:
    fs, path = cast("tuple[Any, str]", fsspec.core.url_to_fs(url))
    limit, name = reading.max_image_bytes, urlsplit(url).path.lower()
    if name.endswith(".parquet"):
        return ParquetSource([url], _columns(options), max_bytes=limit)
    if name.endswith(ARCHIVES):
        opener = partial(_open, url)
        return TreeSource(archive_tree(opener), max_bytes=limit)
    if name.endswith((".json", *_TABLES)):
        folder, file = posixpath.split(url)
        return TreeSource(FolderTree(folder or ".", confine), max_bytes=limit, annotations=file)
    if not fs.isdir(path):
        if not fs.exists(path):
            raise FileNotFoundError(url)
        return TreeSource(archive_tree(partial(_open, url)), max_bytes=limit)
    if parquet := _parquet_files(fs, path):
        if confine and not all(Path(p).resolve().is_relative_to(confine) for p in parquet):
            raise Precondition("a link leads out of the file roots")
        urls = [fs.unstrip_protocol(p) for p in parquet]
        return ParquetSource(urls, _columns(options), max_bytes=limit)
    return TreeSource(FolderTree(url, confine), max_bytes=limit)


def _parquet_files(fs: Any, path: str) -> Sequence[str]:
    """Parquet files right in a folder or in its `data` folder, where hub datasets keep them."""
    for folder in (path, f"{path.rstrip('/')}/data"):
        if found := [p for p in fs.glob(f"{folder}/*.parquet") if fs.isfile(p)]:
            return cast("Sequence[str]", found)
    return []


def _columns(options: dict[str, str]) -> Columns:
    return Columns(options.get("image", ""), options.get("label", ""), options.get("split", ""))


def _open(url: str) -> BinaryIO:
    return cast("BinaryIO", fsspec.open(url, "rb").open())


def _root(uri: str, reading: Reading) -> Path:
    root = reading.policy.confine(uri)
    if root is None:  # a link was changed since the check
        raise Precondition("the path has left the file roots")
    return root


def confined_root(uri: str, reading: Reading) -> Path | None:
    """Return the file root that a local URI must not lead out of; None where there is none.

    Raises Precondition where it lies in none of the roots that this gateway has.
    """
    if reading.policy.loopback or scheme_of(uri) != "file":
        return None
    return _root(uri, reading)


def without_fragment(uri: str) -> str:
    """Return a URI without `#label=a&image=b`."""
    return _fragment(uri)[0]


def _fragment(uri: str) -> tuple[str, dict[str, str]]:
    """Split `uri#label=a&image=b`; a `#` that is part of a path stays where no `=` follows."""
    plain, mark, options = uri.rpartition("#")
    if mark and "=" in options and "/" not in options:
        return plain, dict(parse_qsl(options))
    return uri, {}


def builtin_name(uri: str) -> str:
    """Return NAME of `builtin:NAME?max=60`."""
    return uri.partition(":")[2].partition("?")[0].strip("/")


def _builtin(uri: str, reading: Reading) -> Source:
    return BuiltinSource(builtin_name(uri), reading.cache_dir, reading.catalogue)
