"""One at a time: what checks, collects, copies or empties a blob store must not meet another.

In a folder a lock of the operating system makes taking the lease one step. A bucket has none: who
takes it there waits a moment, and looks whether it is still theirs. Whoever works under a lease
asks it between two blobs, and stops where it was lost to another.
"""

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
_SETTLE_S = 2.0
STALE_S = 180.0
"""A lease that was not renewed for so long is of a process that has died."""


class Lease:
    """A store's lease, renewed beside the work that is done under it."""

    def __init__(self, shelf: Shelf, what: str) -> None:
        self._shelf, self._what, self._mine = shelf, what, uuid.uuid4().hex
        self._renewed_s = 0.0
        self._lost = False
        self._done = threading.Event()
        self._beats = threading.Thread(target=self._beat, daemon=True)

    def check(self) -> None:
        """Raise Precondition where the lease is not ours any more. Cheap, but after a long sleep of
        this process."""
        if not self._lost and time.time() - self._renewed_s > STALE_S / 2:
            try:
                self.renew()
            except Exception as error:
                raise Precondition(
                    f"the lease of {self._what} cannot be renewed: {error}"
                ) from None
        if self._lost:
            raise Precondition(
                f"{self._what} has lost the blob store to another process and stops; start it "
                "again once that has ended"
            )

    def take(self) -> None:
        """Take it. Raises Precondition while another process holds it."""
        began_s = time.monotonic()
        with self._shelf.alone():
            held = _read(self._shelf)
            if held and time.time() - float(str(held["beat"])) < STALE_S and not _is_dead(held):
                raise Precondition(
                    f"{held['what']} is at work on this blob store (process {held['pid']} on "
                    f"{held['host']}); wait for its end"
                )
            self._write()
        is_slow = time.monotonic() - began_s > _SETTLE_S
        if not self._shelf.is_folder:
            time.sleep(_SETTLE_S)
            if is_slow or not self._is_mine():
                self.release()
                raise Precondition("another process began at the same moment; try again")
        self._beats.start()

    def renew(self) -> None:
        """Say that its holder lives, or note that another holds it."""
        with self._shelf.alone():
            if self._is_mine():
                self._write()
            else:
                self._lost = True

    def release(self) -> None:
        """Give it back where it is ours."""
        self._done.set()
        if self._beats.is_alive():
            self._beats.join()
        with self._shelf.alone():
            if self._is_mine():
                self._shelf.remove_named(_NAME)

    def _beat(self) -> None:
        while not self._lost and not self._done.wait(_BEAT_S):
            with contextlib.suppress(Exception):  # the store is away; `check` counts how long
                self.renew()

    def _is_mine(self) -> bool:
        return _read(self._shelf).get("id") == self._mine

    def _write(self) -> None:
        now_s = time.time()
        value = {
            "id": self._mine,
            "what": self._what,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "beat": now_s,
        }
        self._shelf.write_file(_NAME, json.dumps(value).encode())
        self._renewed_s = now_s


@contextlib.contextmanager
def lease(shelf: Shelf, what: str) -> Iterator[Lease]:
    """Hold the store's lease. Raises Precondition while another process holds it."""
    held = Lease(shelf, what)
    held.take()
    try:
        yield held
    finally:
        held.release()


def _read(shelf: Shelf) -> dict[str, object]:
    try:
        found = json.loads(shelf.read_file(_NAME) or b"{}")
    except ValueError:
        return {}
    return (
        found if isinstance(found, dict) and {"beat", "pid", "host", "what"} <= set(found) else {}
    )


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
