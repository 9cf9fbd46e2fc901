"""What is known of a running suite: a lock held while it runs, and a JSON file beside it."""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

from stillhouse_client.certificates import Certificates, in_folder


@dataclass(frozen=True)
class Member:
    """One process of a suite."""

    name: str
    pid: int
    address: str
    log: str


@dataclass(frozen=True)
class State:
    """A running suite; `pid` is that of its supervisor."""

    pid: int
    gateway: str
    members: list[Member] = field(default_factory=list)
    web: str = ""
    """Address of the workbench."""
    certs: str = ""
    """Folder of the certificates that the suite speaks with; empty for plain text."""

    @property
    def certificates(self) -> Certificates | None:
        """What a client of this suite shows."""
        return in_folder(Path(self.certs)) if self.certs else None


class Lock:
    """The lock of a data folder; the system lets go of it when its holder dies."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / "suite.lock"
        self._file: IO[str] | None = None

    @property
    def held(self) -> bool:
        """Return whether the lock is ours."""
        return self._file is not None

    def acquire(self) -> bool:
        """Return whether the lock is now ours."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = self._path.open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        self._file = file
        return True

    def release(self) -> None:
        """Let go of the lock."""
        if self._file is not None:
            self._file.close()
            self._file = None


def write(data_dir: Path, state: State) -> None:
    """Store the state of a running suite."""
    part = _path(data_dir).with_suffix(".part")
    part.write_text(json.dumps(asdict(state), indent=2))
    part.replace(_path(data_dir))


def remove(data_dir: Path) -> None:
    """Forget the state of a suite that ended."""
    _path(data_dir).unlink(missing_ok=True)


def read(data_dir: Path) -> State | None:
    """Return the suite that runs in `data_dir`, or None."""
    if not _path(data_dir).is_file() or not is_locked(data_dir):
        return None
    try:
        raw = json.loads(_path(data_dir).read_text())
        members = [Member(**member) for member in raw["members"]]
        web, certs = str(raw.get("web", "")), str(raw.get("certs", ""))
        return State(int(raw["pid"]), str(raw["gateway"]), members, web, certs)
    except (ValueError, KeyError, TypeError, OSError):
        return None


def is_locked(data_dir: Path) -> bool:
    """Return whether a suite runs in `data_dir`."""
    if not (data_dir / "suite.lock").is_file():
        return False
    lock = Lock(data_dir)
    if not lock.acquire():
        return True
    lock.release()
    return False


def is_alive(pid: int) -> bool:
    """Return whether a process of that id exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _path(data_dir: Path) -> Path:
    return data_dir / "suite.json"
