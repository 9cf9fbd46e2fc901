"""One at a time: a backup and a garbage collection must not run over each other."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator

from services.common.errors import Precondition
from services.common.shelf import Shelf

_NAME = "keeping.json"
_BEAT_S = 20.0
STALE_S = 180.0
"""A lease that was not renewed for so long is of a process that has died."""


@contextlib.contextmanager
def lease(shelf: Shelf, what: str) -> Iterator[None]:
    """Hold the store's lease. Raises Precondition while another process holds it."""
    mine = uuid.uuid4().hex
    held = _read(shelf)
    if held and time.time() - float(str(held["beat"])) < STALE_S and not _is_dead(held):
        raise Precondition(
            f"{held['what']} is at work on this blob store (process {held['pid']} on "
            f"{held['host']}); wait for its end"
        )
    _write(shelf, mine, what)
    if _read(shelf).get("id") != mine:
        raise Precondition("another process began at the same moment; try again")
    done = threading.Event()
    beat = threading.Thread(target=_beat, args=(shelf, mine, what, done), daemon=True)
    beat.start()
    try:
        yield
    finally:
        done.set()
        beat.join()
        shelf.remove_named(_NAME)


def _beat(shelf: Shelf, mine: str, what: str, done: threading.Event) -> None:
    while not done.wait(_BEAT_S):
        _write(shelf, mine, what)


def _read(shelf: Shelf) -> dict[str, object]:
    try:
        found = json.loads(shelf.read_file(_NAME) or b"{}")
    except ValueError:
        return {}
    return (
        found if isinstance(found, dict) and {"beat", "pid", "host", "what"} <= set(found) else {}
    )


def _write(shelf: Shelf, mine: str, what: str) -> None:
    value = {
        "id": mine,
        "what": what,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "beat": time.time(),
    }
    shelf.write_file(_NAME, json.dumps(value).encode())


def _is_dead(held: dict[str, object]) -> bool:
    """Return whether the holder was a process of this machine that has ended."""
    if held["host"] != socket.gethostname():
        return False
    try:
        os.kill(int(str(held["pid"])), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
