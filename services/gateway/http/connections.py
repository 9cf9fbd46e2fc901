"""HTTP connections that do not wait for ever: one caller could hold them all by sending nothing."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

_LATE = (
    b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n"
    b"Cache-Control: no-store\r\n\r\n"
)


class Connection(H11Protocol):
    """Ends a connection whose request line and headers take longer than `read_s` in all, or whose
    body stands still for so long. A body that merely arrives slowly goes on."""

    read_s = 30.0
    _watch: asyncio.TimerHandle | None = None
    _watched: object = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._look()

    def data_received(self, data: bytes) -> None:
        """Take bytes; of a body each piece is worth another wait."""
        super().data_received(data)
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP; a request that had begun so is over, and answers no more."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self.cycle.response_started:
                self.transport.close()
                return
        try:
            super().send_400_response(msg)
        except h11.LocalProtocolError:  # an answer to HEAD has no body, and its head is sent
            self.transport.close()

    def _look(self) -> None:
        """Wait, or go on waiting, for what has to come next."""
        state = self.conn.their_state
        if state is h11.IDLE and self._watched is h11.IDLE:
            return  # headers that trickle in get no more time
        self._stop()
        if state in (h11.IDLE, h11.SEND_BODY) and not self.transport.is_closing():
            self._watched = state
            self._watch = self.loop.call_later(self.read_s, self._give_up)

    def _stop(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        self._watch = self._watched = None

    def _give_up(self) -> None:
        self._stop()
        if self.flow.read_paused:  # it is us who do not read
            self._look()
            return
        if self.cycle is None or not self.cycle.response_started:
            self.transport.write(_LATE)
        self.transport.close()


def connection_class(read_s: float) -> type[Connection]:
    """Return the class of a server's connections."""
    return type("TimedConnection", (Connection,), {"read_s": read_s})
