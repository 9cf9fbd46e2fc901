"""Where files of projects' own models lie in the cache, and how a project's are removed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from services.common.names import check_id


def folder_of(cache_dir: Path, project: str, files: Mapping[str, str]) -> Path:
    """Return the folder of a model's files, named by their digests."""
    text = json.dumps([project, dict(files)], sort_keys=True)
    return _root(cache_dir, project) / hashlib.sha256(text.encode()).hexdigest()


def forget_files(cache_dir: Path, project: str, *, dry_run: bool = False) -> int:
    """Remove the files of a project's models and return how many models there were. Blocking."""
    root = _root(cache_dir, project)
    if not root.is_dir():
        return 0
    count = sum(1 for one in root.iterdir() if not one.name.startswith("."))
    if not dry_run:
        shutil.rmtree(root, ignore_errors=True)
    return count


def _root(cache_dir: Path, project: str) -> Path:
    return cache_dir / "models" / check_id(project, field="project")
