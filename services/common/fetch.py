"""Get a catalogue entry into the cache: fetched once, checked, unpacked, and converted to
safetensors.

The cache is a folder outside the source tree:

    artefacts/SHA256        a checked artefact between its arrival and its unpacking
    files/NAME-SHA/         what was unpacked of it, complete or absent
    weights/NAME-SHA/       converted weights, complete or absent
    incoming/               where a person without a network may put artefacts, under any name
    locks/  scratch/        one lock per artefact; folders of work in progress

Everything arrives under another name and is renamed when it is whole, so a file that is there is
good, and a run that was killed leaves only scratch. Two processes asking for one entry wait for
each other.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeGuard

from services.common.archive import ArchiveError, unpack
from services.common.catalogue import Catalogue, Entry, ImageModel, LanguageModel
from services.common.sources import FetchError, OnProgress, Progress, download, silent
from services.common.weights import WeightsError, content_digest, file_sha256

__all__ = ["FetchError", "OnProgress", "Progress", "ensure", "ensure_all", "is_ready", "silent"]

# Raised when the converter's output changes, so that old conversions are made anew.
_CONVERTER = 1

Convertible = ImageModel | LanguageModel


def _key(entry: Entry) -> str:
    """A folder name for an entry's files, another one when the pinned bytes or the source change.

    A user's unpinned file counts by its contents, so that an edited one is converted anew.
    """
    source = entry.source
    pinned = entry.sha256 or ""
    if not pinned and source and source.scheme == "file" and Path(source.name).is_file():
        pinned = file_sha256(Path(source.name))
    return f"{entry.id}-{hashlib.sha256(f'{source} {pinned}'.encode()).hexdigest()[:16]}"


def _weights(entry: Convertible, cache: Path) -> Path:
    """Where converted weights lie: a safetensors file, of a language model a whole folder."""
    if isinstance(entry, LanguageModel):
        recipe, name = json.dumps([entry.loader, _CONVERTER]), "model"
    else:
        recipe = json.dumps([entry.convert, entry.architecture, entry.variant, _CONVERTER])
        name = "model.safetensors"
    key = f"{_key(entry)}-{hashlib.sha256(recipe.encode()).hexdigest()[:8]}"
    return cache / "weights" / key / name


@contextlib.contextmanager
def _locked(cache: Path, key: str) -> Iterator[None]:
    """Hold the lock of one key; the kernel frees it when a process dies, so no lock is ever stale.

    The holder first removes what a killed holder left in the key's work folder.
    """
    path = cache / "locks" / key
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        shutil.rmtree(cache / "scratch" / key, ignore_errors=True)
        yield


@contextlib.contextmanager
def _scratch(cache: Path, key: str) -> Iterator[Path]:
    """A work folder on the cache's own file system, so that renaming out of it is atomic."""
    parent = cache / "scratch" / key
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _publish(source: Path, target: Path) -> None:
    """Give finished work its name. Renaming is atomic; a reader sees all of it or nothing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(source, target)


def _check_sha256(entry: Entry, path: Path) -> None:
    got = file_sha256(path)
    if got != entry.sha256:
        raise FetchError(
            f"{entry.id}: {path.name} has sha256 {got}, the catalogue pins {entry.sha256}. "
            "It is damaged or is not what was published; it was not used."
        )


def _artefact(entry: Entry, cache: Path, on_progress: OnProgress) -> Path:
    """The checked artefact, kept until it is unpacked so that an interrupted run does not fetch
    again.
    """
    target = cache / "artefacts" / str(entry.sha256)
    if target.exists():
        return target
    with _scratch(cache, _key(entry)) as scratch:
        arrived = download(entry, scratch, cache / "incoming", on_progress)
        on_progress(Progress(entry.id, "verify", entry.size_bytes or 0, entry.size_bytes))
        _check_sha256(entry, arrived)
        _publish(arrived, target)
    return target


def _unpacked(entry: Entry, cache: Path, on_progress: OnProgress) -> Path:
    """The folder with an entry's files, fetched and unpacked where it is not there yet."""
    folder = cache / "files" / _key(entry)
    assert entry.source is not None
    if folder.exists():
        return folder
    with _scratch(cache, _key(entry)) as scratch:
        if entry.source.scheme == "hf":
            _publish(download(entry, scratch, cache / "incoming", on_progress), folder)
            return folder
        artefact = _artefact(entry, cache, on_progress)
        on_progress(Progress(entry.id, "unpack", entry.size_bytes or 0, entry.size_bytes))
        try:
            unpack(artefact, scratch / "files", entry.source.member)
        except ArchiveError as error:
            artefact.unlink()
            raise FetchError(f"{entry.id}: {error}") from error
        _publish(scratch / "files", folder)
    artefact.unlink()
    return folder


def _local(entry: Entry) -> Path:
    """The path of a ``file:`` source, checked against its digest where one is given."""
    assert entry.source is not None
    path = Path(entry.source.name)
    if not path.exists():
        raise FetchError(f"{entry.id}: {path} does not exist")
    if entry.sha256 and path.is_file():
        _check_sha256(entry, path)
    return path


def _files(entry: Entry, cache: Path, on_progress: OnProgress) -> Path:
    """The file or folder that an entry's source names, in the cache or where a user keeps it."""
    assert entry.source is not None
    if entry.source.scheme == "file":
        return _local(entry)
    return _unpacked(entry, cache, on_progress) / entry.source.member.rstrip("/")


def _needs_conversion(entry: Entry) -> TypeGuard[Convertible]:
    if isinstance(entry, LanguageModel):
        return entry.loader == "gguf"
    if not isinstance(entry, ImageModel) or not entry.convert:
        return False
    return not (entry.source.member or entry.source.name).endswith(".safetensors")


def _convert(entry: Convertible, source: Path, target: Path) -> None:
    """Run the converter in a child process: the only place that reads a pickled checkpoint."""
    if isinstance(entry, LanguageModel):
        command = _gguf_command(entry, source, target)
    else:
        command = _pth_command(entry, source, target)
    done = subprocess.run(
        [sys.executable, "-m", *command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise FetchError(f"{entry.id}: conversion failed: {done.stderr.strip()[-800:]}")


def _gguf_command(entry: LanguageModel, source: Path, target: Path) -> list[str]:
    command = ["services.torch_common.language.convert_gguf", str(source), str(target)]
    return [*command, f"--golden={','.join(repr(x) for x in entry.golden)}"]


def _pth_command(entry: ImageModel, source: Path, target: Path) -> list[str]:
    kind = {
        "timm-by-position": f"timm:{entry.architecture}",
        "timm-by-name": f"timm-by-name:{entry.architecture}",
        "keras-resnet50": "keras:resnet50",
    }[entry.convert]
    command = ["services.torch_common.convert_pth", str(source), str(target), "--kind", kind]
    if entry.classes != "imagenet-1k":
        command += ["--classes", str(len(entry.classes))]
    if entry.variant:
        command += ["--variant", entry.variant]
    if entry.golden and entry.input:
        values = ",".join(repr(x) for x in entry.golden)
        command += ["--size", str(entry.input.size_px), f"--golden={values}"]
    return command


def _check_weights(entry: Convertible, path: Path) -> None:
    """Compare the content digest with the pinned one. Raises FetchError."""
    try:
        got = content_digest(path / "model.safetensors" if path.is_dir() else path)
    except (WeightsError, OSError) as error:
        raise FetchError(f"{entry.id}: {error}") from error
    if entry.weights_digest and got != entry.weights_digest:
        raise FetchError(
            f"{entry.id}: weights have digest {got}, the catalogue pins {entry.weights_digest}"
        )


def _converted(entry: Convertible, source: Path, cache: Path, on_progress: OnProgress) -> Path:
    target = _weights(entry, cache)
    if target.exists():
        return target
    on_progress(Progress(entry.id, "convert", entry.size_bytes or 0, entry.size_bytes))
    with _scratch(cache, _key(entry)) as scratch:
        fresh = scratch / target.name
        _convert(entry, source, fresh)
        _check_weights(entry, fresh)
        _publish(fresh, target)
    return target


def _target(entry: Entry, cache: Path) -> Path | None:
    """Where a finished entry lies; None for one without files of its own (a composition)."""
    if entry.source is None:
        return None
    if _needs_conversion(entry):
        return _weights(entry, cache)
    if entry.source.scheme == "file":
        return Path(entry.source.name)
    return cache / "files" / _key(entry) / entry.source.member.rstrip("/")


def is_ready(entry: Entry, cache: Path) -> bool:
    """Whether ``ensure`` would find everything in place. Fetches nothing."""
    target = _target(entry, cache)
    return target is None or target.exists()


def ensure(entry: Entry, cache: Path, on_progress: OnProgress = silent) -> Path:
    """Bring an entry into ``cache``; returns the path of its safetensors, data file or folder.

    Safe to call from several processes and to interrupt at any moment. An entry without a source (a
    composition) returns the cache itself; use ``ensure_all`` for its parts. Raises FetchError with
    what to do.
    """
    target = _target(entry, cache)
    if target is None:
        return cache
    assert entry.source is not None
    if target.exists() and entry.source.scheme != "file":
        on_progress(Progress(entry.id, "ready", entry.size_bytes or 0, entry.size_bytes))
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache, _key(entry)):
        path = _files(entry, cache, on_progress)
        if _needs_conversion(entry):
            path = _converted(entry, path, cache, on_progress)
        elif isinstance(entry, ImageModel) and path.suffix == ".safetensors":
            _check_weights(entry, path)
    on_progress(Progress(entry.id, "ready", entry.size_bytes or 0, entry.size_bytes))
    return path


def ensure_all(
    catalogue: Catalogue, names: Iterable[str], cache: Path, on_progress: OnProgress = silent
) -> dict[str, Path]:
    """``ensure`` for entries or sets by name, with all their parts. Returns a path per entry id."""
    return {
        entry.id: ensure(entry, cache, on_progress)
        for entry in catalogue.closure(names)
        if entry.source is not None
    }
