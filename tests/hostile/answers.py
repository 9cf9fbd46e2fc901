"""What came back over a raw HTTP connection: its status, and whether all of it is there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

_INTERIM = re.compile(rb"HTTP/1\.1 1\d\d [^\r\n]*\r\n(?:[^\r\n]+\r\n)*\r\n")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)


@dataclass(frozen=True)
class Answer:
    """The bytes of an answer; `is_late` where the line was still open at the deadline."""

    found: bytes
    is_late: bool = False

    @cached_property
    def _parts(self) -> tuple[bytes, bytes, bytes]:
        """Head, whatever parts it from the body, and body, without interim answers."""
        interim = _INTERIM.match(self.found)
        return self.found[interim.end() if interim else 0 :].partition(b"\r\n\r\n")

    @property
    def body(self) -> bytes:
        return self._parts[2]

    @property
    def status(self) -> str:
        """The status code; `closed` where nothing came, `late` where nothing came in time."""
        words = self._parts[0].split(b" ", 2)
        if len(words) > 2 and words[0].startswith(b"HTTP/1"):
            return words[1].decode(errors="replace")[:3]
        return "late" if self.is_late else "closed"

    @property
    def is_events(self) -> bool:
        """Whether it is a stream of events, which may stay open."""
        return b"text/event-stream" in self._parts[0] and bool(self._parts[1])

    @property
    def is_whole(self) -> bool:
        """Whether the body is as long as the head says."""
        head, parted, body = self._parts
        if not parted or self.status in ("204", "304"):
            return bool(parted)
        if length := _LENGTH.search(head):
            return len(body) >= int(length[1])
        return not _CHUNKED.search(head) or body.endswith(b"0\r\n\r\n")
