"""What the campaign and the soak take for a good answer and for growth."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.hostile.answers import Answer
from tests.hostile.inputs import Input
from tests.hostile.sending import Sender
from tests.hostile.soak import grows, growth
from tests.hostile.tally import not_flat
from tests.hostile.watch import Reading

_GET = Input("http", "a route", "gateway", "a route", (b"GET / HTTP/1.1\r\n\r\n",))
_GOOD = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"


@pytest.mark.parametrize(
    ("found", "status", "is_whole"),
    [
        (b"", "closed", False),
        (b"HTTP/1.1 200 OK\r\ncontent", "200", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\na", "200", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab", "200", True),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 400 Bad\r\n\r\n", "400", True),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n", "200", False),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "200", True),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", "304", True),
    ],
)
def test_answers(found: bytes, status: str, is_whole: bool) -> None:
    answer = Answer(found)
    assert (answer.status, answer.is_whole) == (status, is_whole)


class _Target:
    """A gateway of which there is only an HTTP port."""

    names, rpcs, ports, socket = {}, [], {}, Path("/none")  # type: ignore[var-annotated]

    def __init__(self, http_port: int) -> None:
        self.http_port = http_port


@contextmanager
def _edge(*answers: bytes) -> Iterator[int]:
    """A port that gives each caller the next answer and closes the line, and is then gone."""

    def serve() -> None:
        for answer in answers:
            line, _ = listening.accept()
            with line:
                line.recv(1 << 16)
                line.sendall(answer)
        listening.close()

    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    thread = threading.Thread(target=serve)
    thread.start()
    if not answers:
        thread.join()
    yield port
    thread.join(10)


@pytest.mark.parametrize(
    ("answers", "code"),
    [
        ((), "dead"),
        ((b"", b""), "dead"),
        ((b"", b"HTTP/1.1 503 Away\r\n\r\n"), "dead"),
        ((b"", _GOOD), "closed"),
        ((_GOOD[:-1],), "cut"),
        ((_GOOD,), "200"),
    ],
)
def test_an_edge_that_is_gone_is_a_find(answers: tuple[bytes, ...], code: str) -> None:
    with _edge(*answers) as port:
        sender = Sender(_Target(port), 5.0)
        outcome = sender.send(_GET)
        sender.close()
    assert outcome.code == code
    assert outcome.is_internal == (code in ("dead", "cut"))


def _readings(mib_a_minute: float, fds_a_minute: float, minutes: int = 14) -> list[Reading]:
    """One each two seconds, with a wobble of two per cent."""
    found = []
    for at_s in range(0, 60 * minutes, 2):
        rss = 500 + mib_a_minute * at_s / 60 + 10 * (at_s % 14 - 6) / 6
        found.append(Reading(at_s, rss, int(100 + fds_a_minute * at_s / 60 + at_s % 3), 9))
    return found


@pytest.mark.parametrize(
    ("mib", "fds", "minutes", "lines"), [(0, 0, 14, 0), (2, 0, 14, 1), (0, 2, 14, 1), (9, 9, 6, 0)]
)
def test_what_grows(mib: float, fds: float, minutes: int, lines: int) -> None:
    """A slope of 4 % in ten minutes is found, one over two minutes is not judged."""
    found = {"teacher": growth(_readings(mib, fds, minutes), 240)}
    assert len(grows(found)) == lines


def test_what_is_not_flat() -> None:
    flat = {"warm_mib": 500.0, "end_mib": 520.0, "warm_fds": 50, "end_fds": 60}
    assert not not_flat({"gateway": flat})
    assert len(not_flat({"gateway": flat | {"end_mib": 600.0, "end_fds": 90}})) == 2
