"""Calls to addresses from requests, with real HTTP servers on loopback, which is not allowed."""

from __future__ import annotations

import contextlib
import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from services.common import connections
from services.common.errors import Cancelled, InvalidInput, PeerUnavailable, Precondition
from services.common.outbound import Addresses

LOCAL = Addresses(("127.0.0.0/8",))


@contextmanager
def web(
    answers: dict[str, tuple[int, dict[str, str], bytes]], *, port: int = 0
) -> Iterator[tuple[str, list[str]]]:
    """Serve these paths on loopback; yield the server's URL and the requests it has seen."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(f"{self.command} {self.path}")
            length = int(self.headers.get("content-length", 0))
            self.rfile.read(length)
            status, headers, body = answers[self.path]
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()


def fetched(addresses: Addresses, url: str, *, most: int = 1 << 20) -> bytes:
    out = io.BytesIO()
    addresses.get(url, out, timeout_s=5, most=most)
    return out.getvalue()


def name_is(monkeypatch: pytest.MonkeyPatch, *ips: str) -> None:
    """Let names be these addresses, one after the other, as a name server may answer that wants
    the check to see another address than the connection."""
    real, left = socket.getaddrinfo, list(ips)

    def look(host: str, *args: Any, **kwargs: Any) -> Any:
        if host != "rebinding.example":
            return real(host, *args, **kwargs)
        return real(left.pop(0) if len(left) > 1 else left[0], *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", look)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "[::1]",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "169.254.169.254",
        "[fe80::1]",
        "[fd00::1]",
        "0.0.0.0",
        "[::]",
        "224.0.0.1",
        "[::ffff:127.0.0.1]",
        "[::ffff:169.254.169.254]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "2130706433",
        "0x7f000001",
        "127.1",
    ],
)
def test_what_is_not_public_is_refused(host: str) -> None:
    for call in (
        lambda: fetched(Addresses(), f"http://{host}:9/x"),
        lambda: Addresses().post(f"https://{host}:9/x", b"", {}, timeout_s=5, most=1),
    ):
        with pytest.raises(Precondition, match="GATEWAY_ALLOWED_ADDRESSES"):
            call()


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://example.org/x",
        "gopher://example.org/",
        "http://",
        "https:///x",
        "http://user:secret@example.org/",
        "http://example.org\\@127.0.0.1/",
        "http://example.org:99999/",
        "//example.org/x",
        "data:text/plain,x",
    ],
)
def test_what_is_no_web_address_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput):
        fetched(Addresses(("0.0.0.0/0",)), url)


def test_what_a_setting_allows_is_called() -> None:
    with web({"/x": (200, {}, b"data")}) as (url, seen):
        assert fetched(LOCAL, f"{url}/x") == b"data"
        assert LOCAL.post(f"{url}/x", b"body", {}, timeout_s=5, most=2).body == b"da"
        by_name = url.replace("127.0.0.1", "localhost") + "/x"
        assert fetched(Addresses(("local*",)), by_name) == b"data"
        assert seen == ["GET /x", "POST /x", "GET /x"]
        with pytest.raises(InvalidInput, match="over 3 bytes"):
            fetched(LOCAL, f"{url}/x", most=3)


def test_a_redirect_is_checked_like_the_first_request() -> None:
    hops = {
        "/in": (302, {"location": "/x"}, b""),
        "/metadata": (302, {"location": "http://169.254.169.254/latest"}, b""),
        "/v6": (307, {"location": "http://[::1]:1/"}, b""),
        "/name": (301, {"location": "http://localhost:1/"}, b""),
        "/file": (302, {"location": "file:///etc/passwd"}, b""),
        "/ftp": (302, {"location": "ftp://127.0.0.1/x"}, b""),
        "/round": (302, {"location": "/round"}, b""),
        "/x": (200, {}, b"data"),
    }
    with web(hops) as (url, _):
        only = Addresses(("127.0.0.1",))
        assert fetched(only, f"{url}/in") == b"data"
        for path in ("/metadata", "/v6", "/ftp"):
            with pytest.raises(Precondition):
                fetched(only, f"{url}{path}")
        with pytest.raises(PeerUnavailable, match="Found"):
            fetched(only, f"{url}/file")
        with pytest.raises((Precondition, PeerUnavailable)):
            fetched(only, f"{url}/name")  # ::1 where this machine has it, else a closed port
        with pytest.raises(PeerUnavailable):
            fetched(only, f"{url}/round")
        assert LOCAL.post(f"{url}/metadata", b"", {}, timeout_s=5, most=9).status == 302


def test_a_name_that_changes_is_connected_to_where_it_was_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with web({"/x": (200, {}, b"secret")}) as (url, seen):
        target = url.replace("127.0.0.1", "rebinding.example") + "/x"
        name_is(monkeypatch, "127.0.0.1")
        with pytest.raises(Precondition):
            fetched(Addresses(), target)
        # Good when it is looked at, ours from then on: whatever is connected to was looked at.
        tried: list[str] = []

        def connect(_: socket.socket, address: tuple[str, int]) -> None:
            tried.append(address[0])
            raise OSError("not in a test")

        monkeypatch.setattr(socket.socket, "connect", connect)
        name_is(monkeypatch, "8.8.8.8", "127.0.0.1")
        with pytest.raises(PeerUnavailable):
            fetched(Addresses(), target)
        assert tried == ["8.8.8.8"]
        assert not seen


def test_a_name_with_one_forbidden_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    public = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("8.8.8.8", 80))
    private = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 80))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [public, private])
    with pytest.raises(Precondition, match=r"10\.0\.0\.1"):
        Addresses().resolve("both.example", 80)


def test_a_name_that_is_allowed_is_not_allowed_to_be_a_metadata_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name_is(monkeypatch, "169.254.169.254")
    with pytest.raises(Precondition):
        Addresses(("rebinding.example",)).resolve("rebinding.example", 80)


def test_who_answers_a_byte_at_a_time_is_not_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        done = threading.Event()

        def drip() -> None:
            peer, _ = server.accept()
            with peer:
                while not done.wait(0.1):
                    try:
                        peer.sendall(b"H")
                    except OSError:
                        return

        thread = threading.Thread(target=drip)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        with pytest.raises(PeerUnavailable):
            LOCAL.post(url, b"x", {}, timeout_s=1, most=10)
        done.set()
        thread.join()


@contextmanager
def talking(say: Callable[[socket.socket, threading.Event], None]) -> Iterator[str]:
    """Serve one caller on loopback by writing to its socket; yields the server's URL."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        done = threading.Event()
        server.settimeout(0.1)

        def answer() -> None:
            while not done.is_set():
                with contextlib.suppress(TimeoutError):
                    peer, _ = server.accept()
                    with peer, contextlib.suppress(OSError):
                        peer.settimeout(None)
                        peer.recv(4096)
                        say(peer, done)
                    return

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}/"
        finally:
            done.set()
            thread.join()


def test_the_body_of_a_redirect_is_not_read() -> None:
    sent = [0]

    def endless(peer: socket.socket, done: threading.Event) -> None:
        peer.sendall(b"HTTP/1.1 302 Found\r\nlocation: ftp://x/y\r\n\r\n")
        while not done.is_set():
            sent[0] += peer.send(b"x" * 65536)

    with talking(endless) as url, pytest.raises(Precondition):
        fetched(LOCAL, url)
    with web({"/x": (200, {}, b"data")}) as (there, _):

        def endless_hop(peer: socket.socket, done: threading.Event) -> None:
            peer.sendall(f"HTTP/1.1 302 Found\r\nlocation: {there}/x\r\n\r\n".encode())
            while not done.is_set():
                sent[0] += peer.send(b"x" * 65536)

        with talking(endless_hop) as url:
            assert fetched(LOCAL, url) == b"data"
    assert sent[0] < 64 << 20


def test_headers_that_drip_and_downloads_that_crawl_are_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def drip(peer: socket.socket, done: threading.Event) -> None:
        while not done.wait(0.05):
            peer.sendall(b"H")

    def crawl(peer: socket.socket, done: threading.Event) -> None:
        peer.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 99999\r\n\r\n")
        drip(peer, done)

    with talking(drip) as url, pytest.raises(PeerUnavailable):
        LOCAL.get(url, io.BytesIO(), timeout_s=1, most=100)
    monkeypatch.setattr(connections, "_GRACE_S", 0.5)
    with talking(crawl) as url, pytest.raises(PeerUnavailable, match="too slowly"):
        LOCAL.get(url, io.BytesIO(), timeout_s=5, most=1 << 20)
    with talking(crawl) as url, pytest.raises(Cancelled):
        LOCAL.get(url, io.BytesIO(), timeout_s=5, most=1 << 20, stopping=lambda: True)


@pytest.mark.parametrize("sent", [b"", b"4\r\ndata\r\n0\r\n"], ids=["a chunk's size", "trailers"])
def test_what_drips_between_and_after_chunks_is_given_up(
    sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drip(peer: socket.socket, done: threading.Event) -> None:
        peer.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + sent)
        while not done.wait(0.05):
            peer.sendall(b"a: b\r\n" if sent else b"0")

    monkeypatch.setattr(connections, "_GRACE_S", 0.5)
    with talking(drip) as url, pytest.raises(PeerUnavailable, match="too slowly"):
        LOCAL.get(url, io.BytesIO(), timeout_s=5, most=1 << 20)
    with talking(drip) as url, pytest.raises(Cancelled):
        LOCAL.get(url, io.BytesIO(), timeout_s=5, most=1 << 20, stopping=lambda: True)


def test_a_download_that_ends_in_the_middle_is_not_taken_for_whole() -> None:
    def half(peer: socket.socket, done: threading.Event) -> None:
        peer.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")

    with talking(half) as url, pytest.raises(PeerUnavailable, match="in the middle"):
        fetched(LOCAL, url)


def test_all_addresses_of_a_name_share_one_time(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)) for port in range(9)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    tried: list[float] = []

    def connect(one: socket.socket, _: object) -> None:
        tried.append(one.gettimeout() or 0.0)
        time.sleep(0.3)
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket.socket, "connect", connect)
    with pytest.raises(PeerUnavailable):
        LOCAL.post("http://many.example/", b"", {}, timeout_s=0.5, most=10)
    assert len(tried) == 2
    assert tried[1] < tried[0] <= 0.5


@pytest.mark.parametrize(
    "url", ["https://example.org/h\u00f6k", "https://h\u00f6k.example/", "http://a/\n"]
)
def test_what_cannot_be_sent_as_it_is_is_refused_at_once(url: str) -> None:
    with pytest.raises(InvalidInput):
        Addresses().split(url)


@pytest.mark.parametrize(
    "address", ["::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "fd00:ec2::254", "fe80::1"]
)
def test_no_form_of_a_metadata_address_is_allowed_by_name(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    found = [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, 80, 0, 0))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(Precondition):
        Addresses(("*.example.org",)).resolve("x.example.org", 80)
