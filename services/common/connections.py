"""HTTP connections that a second thread can end: after a time, when what they bring comes too
slowly, or when nobody wants it any more.

A socket's own time-out is for each piece of an answer. Who sends one byte at a time stays below it
for ever, within a header, a chunk's size or what follows the last chunk.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from services.common.errors import Cancelled, PeerUnavailable, StillhouseError

_LEAST_BYTES_PER_S, _GRACE_S = 16 << 10, 60.0
"""A download that has been slower than that, after a while, is given up: it holds up others."""
_LOOK_S = 1.0
"""Between two looks at how fast a download is, and at whether it is still wanted."""
Connect = Callable[..., socket.socket]
"""As `socket.create_connection`, with `until_s` on the monotonic clock."""


@contextlib.contextmanager
def within(seconds: float, connections: Sequence[Connection]) -> Iterator[None]:
    """Cut the connections where the block takes longer: a time-out is for each piece, and who sends
    a byte at a time would be waited for much longer."""
    deadline = threading.Timer(seconds, cut, [connections])
    deadline.start()
    try:
        yield
    finally:
        deadline.cancel()


def cut(connections: Sequence[Connection]) -> None:
    """End what others read from the connections just now."""
    for one in list(connections):
        for used in filter(None, (one.sock, one.connected)):
            with contextlib.suppress(OSError):  # it ends just now
                used.shutdown(socket.SHUT_RDWR)


class Pace:
    """Looks after a download from a thread of its own, and cuts it where it is too slow or no
    longer wanted: who reads it may wait for bytes between the chunks, for as long as they drip.

    Leaving raises what the download was cut for, in place of what reading made of the cut.
    """

    def __init__(
        self, connections: Sequence[Connection], host: str, stopping: Callable[[], bool]
    ) -> None:
        self.size = 0
        self._connections, self._host, self._stopping = connections, host, stopping
        self._began_s, self._ended = time.monotonic(), threading.Event()
        self._why: StillhouseError | None = None
        self._thread = threading.Thread(target=self._watch, name="download-pace", daemon=True)

    def __enter__(self) -> Pace:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        if self._why is not None:
            raise self._why from None

    def _watch(self) -> None:
        while not self._ended.wait(_LOOK_S):
            if self._stopping():
                self._why = Cancelled("the download was stopped")
            elif self.size < _LEAST_BYTES_PER_S * (time.monotonic() - self._began_s - _GRACE_S):
                self._why = PeerUnavailable(f"{self._host} sends too slowly")
            if self._why is not None:
                cut(self._connections)
                return


class HTTPConnection(http.client.HTTPConnection):
    connected: socket.socket | None = None
    """Also when an answer has taken the socket over, as one does that ends with its connection."""

    def __init__(self, host: str, port: int, timeout_s: float, connect: Connect) -> None:
        super().__init__(host, port, timeout=timeout_s)
        self._create_connection = _connecting(connect, timeout_s)

    def connect(self) -> None:
        super().connect()
        self.connected = self.sock


class HTTPSConnection(http.client.HTTPSConnection):
    connected: socket.socket | None = None

    def __init__(self, host: str, port: int, timeout_s: float, connect: Connect) -> None:
        super().__init__(host, port, timeout=timeout_s, context=ssl.create_default_context())
        self._create_connection = _connecting(connect, timeout_s)

    def connect(self) -> None:
        super().connect()
        self.connected = self.sock


Connection = HTTPConnection | HTTPSConnection


def _connecting(connect: Connect, timeout_s: float) -> Callable[..., socket.socket]:
    """Connect within the time that begins now."""
    return functools.partial(connect, until_s=time.monotonic() + timeout_s)
