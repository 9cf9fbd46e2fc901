"""Carries out the Dockerfile without a container engine: its steps in a folder of its own.

Absolute paths of the image (`/opt/venv`, `/src`, ...) become paths under that folder, and what is
copied is what git knows of the paths that the Dockerfile names. Steps that change the system, those
of the stage `base`, are left out: this machine stands for the base image.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
_INSIDE = re.compile(
    r"(?<![\w./-])/(opt|src|requirements|var/lib/stillhouse|var/cache/stillhouse)\b"
)
_MOUNT = re.compile(r"--mount=\S+\s+")
_HELD: dict[Path, TextIO] = {}


@dataclass(frozen=True)
class Step:
    """An instruction of the Dockerfile."""

    word: str
    rest: str


@dataclass
class Stage:
    """The instructions of one stage, in order."""

    name: str
    steps: list[Step] = field(default_factory=list)


def parse(text: str) -> list[Stage]:
    """Return the stages of a Dockerfile; arguments before the first one are left out."""
    joined, held = [], ""
    for line in text.splitlines():
        if line.lstrip().startswith("#") or not line.strip():
            continue
        held += line.strip().removesuffix("\\")
        if not line.rstrip().endswith("\\"):
            joined.append(held)
            held = ""
    stages: list[Stage] = []
    for line in joined:
        word, _, rest = line.partition(" ")
        if word == "FROM":
            stages.append(Stage(rest.rpartition(" AS ")[2] if " AS " in rest else "final"))
        elif stages:
            stages[-1].steps.append(Step(word, rest.strip()))
    return stages


class Image:
    """An image of one service as a folder: `build` fills it, `command` says how to run in it."""

    def __init__(self, folder: Path, service: str, *, without: str = "") -> None:
        """`without` leaves out the steps in which it occurs."""
        self.folder, self.service = folder, service
        self._without = without
        self._stages = {stage.name: stage for stage in parse(DOCKERFILE.read_text())}
        # pip's own index, said out loud: a CPU build of torch where this machine finds one.
        self._arguments = {"SERVICE": service, "TORCH_INDEX": _index()}
        self.ran: list[str] = []
        """The commands of RUN steps, as they were run."""

    def build(self) -> None:
        """Carry out all stages but `base`. Installed requirements are kept for the next build."""
        for name in ("requirements", "build", "final"):
            self._stage(self._stages[name])
        (self.folder / "whole").touch()

    def inside(self, text: str) -> str:
        """Return text with paths of the image as paths of this machine."""
        return _INSIDE.sub(lambda found: f"{self.folder}/{found[1]}", text)

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the image, with nothing of this machine's but the way to programs."""
        values = {"PATH": os.environ["PATH"]}
        for step in self._stages["final"].steps:
            if step.word == "ENV":
                for pair in shlex.split(step.rest):
                    name, _, value = pair.partition("=")
                    value = value.replace("$PATH", values["PATH"])
                    values[name] = self.inside(value.replace("${SERVICE}", self.service))
        return values

    def command(self, word: str) -> list[str]:
        """Return the command of CMD or HEALTHCHECK."""
        (rest,) = [step.rest for step in self._stages["final"].steps if step.word == word]
        return list(json.loads(rest[rest.index("[") :]))

    @property
    def python(self) -> str:
        return f"{self.folder}/opt/venv/bin/python"

    def _stage(self, stage: Stage) -> None:
        work = self.folder
        for step in stage.steps:
            if step.word == "WORKDIR":
                work = Path(self.inside(step.rest))
                work.mkdir(parents=True, exist_ok=True)
            elif step.word == "ARG":
                name, _, value = step.rest.partition("=")
                self._arguments.setdefault(name, value.strip('"'))
            elif step.word == "COPY":
                self._copy(step.rest.split(), work)
            elif step.word == "RUN" and not (self._without and self._without in step.rest):
                self._run(_MOUNT.sub("", step.rest), work)

    def _copy(self, words: list[str], work: Path) -> None:
        """Copy what git knows; between stages nothing is to do, for they share this folder."""
        if words[0].startswith("--from="):
            return
        *sources, target = words
        for source in sources:
            into = work if target == "./" else work / target
            for path in tracked(source):
                inner = path.relative_to(ROOT / source) if (ROOT / source).is_dir() else path.name
                (into / inner).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, into / inner)

    def _run(self, command: str, work: Path) -> None:
        command = self.inside(command)
        self.ran.append(command)
        subprocess.run(
            ["sh", "-c", command],
            cwd=work,
            env=_outside() | self._arguments,
            check=True,
            capture_output=True,
            text=True,
        )


def _outside() -> dict[str, str]:
    """This machine's environment without what leads to the tree under test.

    Without byte code too, which takes as long as all the rest and is made at the first start.
    """
    ours = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    return kept | {"PIP_NO_COMPILE": "1"}


def _index() -> str:
    """Return the index that pip asks; empty where it is the one it comes with."""
    command = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def tracked(source: str) -> list[Path]:
    """Return the files of a path that git knows, or would: what a clean context holds of it."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", source],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def cached_folder(service: str) -> Path:
    """Return where a service's image is kept between test runs, outside of the tree.

    Another list of requirements is another folder; older ones are removed. Until this process ends
    no other one gets the folder.
    """
    # Not below a home folder, which other users, as a service is one, may not enter.
    parent = Path("/var/tmp") / f"stillhouse-images-{os.geteuid()}"
    parent.mkdir(mode=0o755, exist_ok=True)
    assert parent.stat().st_uid == os.geteuid(), f"{parent} is somebody else's"
    inputs = (ROOT / "pyproject.toml").read_bytes() + DOCKERFILE.read_bytes()
    inputs += b"".join(path.read_bytes() for path in tracked("requirements"))
    folder = parent / f"{service}-{hashlib.sha256(inputs).hexdigest()[:16]}"
    for old in parent.glob(f"{service}-*/"):
        if old != folder and _hold(old, at_once=True):
            shutil.rmtree(old, ignore_errors=True)
    _hold(folder)
    if not (folder / "whole").exists():  # an earlier build was interrupted
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / "src", ignore_errors=True)
    return folder


def _hold(folder: Path, *, at_once: bool = False) -> bool:
    """Keep a folder for this process, or with `at_once` return whether that is possible now."""
    if folder in _HELD:
        return True
    lock = folder.with_suffix(".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (fcntl.LOCK_NB if at_once else 0))
    except BlockingIOError:
        lock.close()
        return False
    _HELD[folder] = lock
    return True
