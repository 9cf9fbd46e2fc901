"""Environments of other projects' packages, which need other versions than ours: made once, in the
cache folder."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CACHE = Path.home() / ".cache" / "stillhouse" / "environments"
_AWAY = (
    "NewConnectionError",
    "Failed to establish a new connection",
    "Temporary failure in name resolution",
    "Read timed out",
    "Could not fetch URL",
)


def environment(name: str) -> Path:
    """The Python of an environment with what `name`.txt beside this file pins. Skips the test
    where the package index cannot be reached."""
    pins = HERE / f"{name}.txt"
    text = f"{sys.version}\n{pins.read_text()}"
    folder = CACHE / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
            _install(folder, pins)
            (folder / "complete").touch()
    return folder / "bin" / "python"


def _install(folder: Path, pins: Path) -> None:
    done = subprocess.run(
        [folder / "bin" / "pip", "install", "--disable-pip-version-check", "-q", "-r", pins],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode and any(sign in done.stderr + done.stdout for sign in _AWAY):
        pytest.skip(f"the package index cannot be reached for {pins.name}")
    assert done.returncode == 0, done.stderr[-3000:]
