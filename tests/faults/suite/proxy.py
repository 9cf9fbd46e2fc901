"""A TCP proxy whose connections can be cut, or swallow everything as a broken network does.

Run as a program it only passes on: `python -m tests.faults.suite.proxy HOST:PORT HOST:PORT`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys

_CHUNK_BYTES = 1 << 16
_ABORT = struct.pack("ii", 1, 0)
"""SO_LINGER that makes a close a reset: the other side sees an error, not an end."""


class Proxy:
    """Passes connections from one address on to another. Use from one event loop."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.port = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._passing = asyncio.Event()
        self._passing.set()
        self._refusing = False

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, host, port)
        self.port = int(self._server.sockets[0].getsockname()[1])

    def cut(self) -> None:
        """Reset every connection, and each that comes until `heal`."""
        self._refusing = True
        for writer in list(self._writers):
            _reset(writer)
        self._passing.set()

    def swallow(self) -> None:
        """Let nothing through until `heal`; connections stay open, and new ones open."""
        self._passing.clear()

    def heal(self) -> None:
        """Pass on again, and first what was held back."""
        self._refusing = False
        self._passing.set()

    async def close(self) -> None:
        """End all connections and stop to listen."""
        if self._server is not None:
            self._server.close()
        self.cut()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            _reset(writer)
            return
        try:
            await self._passing.wait()
            there, back = await asyncio.open_connection(*self.target)
        except OSError:
            _reset(writer)
            return
        self._writers |= {writer, back}
        try:
            ways = [self._pump(reader, back), self._pump(there, writer)]
            await asyncio.gather(*ways)
        finally:
            self._writers -= {writer, back}
            for one in (writer, back):
                one.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK_BYTES):
                await self._passing.wait()
                writer.write(data)
                await writer.drain()
        with contextlib.suppress(OSError, RuntimeError):
            writer.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, AttributeError):
        found = writer.get_extra_info("socket")
        found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
    writer.transport.abort()


async def _pass_on(listen: str, target: str) -> None:
    host, _, port = listen.rpartition(":")
    there, _, at = target.rpartition(":")
    proxy = Proxy((there, int(at)))
    await proxy.start(host, int(port))
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_pass_on(*sys.argv[1:3]))
