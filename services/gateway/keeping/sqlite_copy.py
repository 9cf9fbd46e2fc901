"""Copies of SQLite databases that are in use, by SQLite's own online backup."""

from __future__ import annotations

import contextlib
import filecmp
import os
import shutil
import sqlite3
from collections.abc import Mapping
from pathlib import Path

from sqlalchemy import make_url

from services.common.errors import Precondition
from services.gateway.jobs.engine import system_database_url

ROWS, WORKFLOWS = "gateway.db", "workflows.db"


def snapshot(database_url: str, folder: Path) -> list[str]:
    """Copy both files into `folder` and return the names of the copies.

    The workflow engine's file goes first: rows that are ahead of it are what a killed gateway
    leaves as well, and what every start sets right; a workflow that had ended before its job's row
    did would leave the job running for ever.
    """
    made = []
    for name, path in reversed(paths(database_url).items()):
        if path.is_file():
            _copy(path, folder / name)
            made.append(name)
    if ROWS not in made:
        raise Precondition(f"there is no database at {paths(database_url)[ROWS]}")
    return made


def paths(database_url: str) -> dict[str, Path]:
    """Return where the two files lie, by their name in a backup."""
    return {
        ROWS: Path(make_url(database_url).database or ""),
        WORKFLOWS: Path(make_url(system_database_url(database_url)).database or ""),
    }


def is_empty(database_url: str, *, resuming: bool = False) -> bool:
    """Return whether a restore may write there. One that is `resuming` may have put the workflow
    engine's file there, and `put_in_place` looks whether it did."""
    found = paths(database_url)
    return not any(path.exists() for name, path in found.items() if not resuming or name == ROWS)


def put_in_place(database_url: str, folder: Path, after: Mapping[str, str]) -> None:
    """Put copies where a gateway looks for them, the rows last: without them there is no gateway's
    database. `after` is done to tables of the copy, by name, before.

    Raises Precondition where a database has come there meanwhile.
    """
    for table, statement in after.items():
        _change(folder / ROWS, table, statement)
    parts = []
    for name, path in reversed(paths(database_url).items()):
        if (folder / name).is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f"{path.name}.part")
            shutil.copyfile(folder / name, part)
            _check(part)
            parts.append((name, part, path))
    for name, part, path in parts:
        is_ours = name == WORKFLOWS and path.is_file() and filecmp.cmp(part, path, shallow=False)
        if not is_ours and not is_empty(database_url, resuming=name == ROWS):
            raise Precondition(f"{path} was made meanwhile; a restore needs an empty place")
        os.replace(part, path)


def _change(path: Path, table: str, statement: str) -> None:
    """Run a statement where its table is there: an older release may not have had it."""
    with contextlib.closing(sqlite3.connect(path)) as copy, copy:
        query = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
        if copy.execute(query, (table,)).fetchone():
            copy.execute(statement)


def _copy(path: Path, target: Path) -> None:
    with (
        contextlib.closing(sqlite3.connect(path, timeout=30)) as source,
        contextlib.closing(sqlite3.connect(target)) as copy,
    ):
        source.backup(copy)
        copy.execute("PRAGMA journal_mode=DELETE")
    _check(target)


def _check(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as copy:
        try:
            said = copy.execute("PRAGMA integrity_check").fetchone()[0]
        except sqlite3.DatabaseError as error:
            said = str(error)
    if said != "ok":
        raise Precondition(f"{path.name} is damaged: {said[:200]}")
