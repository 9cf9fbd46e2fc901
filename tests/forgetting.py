"""Kills services in the middle of forgetting a project: many files are what takes them a while."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import grpc

FOLDERS, FILES = 300, 60


def fill(root: Path, *, folders: int = FOLDERS) -> None:
    """Write folders with files in them."""
    for number in range(folders):
        folder = root / f"r{number:04d}"
        folder.mkdir(parents=True)
        for name in range(FILES):
            (folder / f"{name}").touch()


def count(root: Path) -> int:
    """Return how many folders are left."""
    return len(os.listdir(root)) if root.is_dir() else 0


def files(root: Path) -> list[str]:
    """Return the paths of all that is there."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def kill_midway(root: Path, call: grpc.Future, kill: Callable[[], None]) -> int:
    """Kill a service once its call has removed some of `root`; return how many folders are left."""
    while count(root) == FOLDERS:
        assert not call.done(), call
    kill()
    left = count(root)
    assert 0 < left < FOLDERS, "the kill came too late"
    return left
