"""Calls to addresses that a request names: none but public ones, unless a setting allows more.

A name is resolved once, its addresses are checked, and the connection goes to a checked address:
what the name resolves to later, or in another answer, does not matter. Redirects are requests of
their own and checked like the first. Blocking.
"""

from __future__ import annotations

import contextlib
import fnmatch
import http.client
import ipaddress
import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, BinaryIO, cast
from urllib.parse import SplitResult, urlsplit

from services.common.errors import InvalidInput, PeerUnavailable, Precondition, StillhouseError

_PORTS = {"http": 80, "https": 443}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
IP = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class Answer:
    """A status and the first bytes of a body."""

    status: int
    body: bytes


@dataclass(frozen=True)
class Addresses:
    """Where may be called. `allowed` holds host names (`*.example.org` stands for all below it),
    addresses and networks, beside public addresses, which are always allowed."""

    allowed: tuple[str, ...] = ()

    def split(self, url: str) -> SplitResult:
        """Return a URL's parts. Raises InvalidInput for one that is malformed or not http(s),
        Precondition for a literal address that is not allowed. Resolves nothing."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise InvalidInput("url: is malformed", field="url") from None
        if parts.scheme not in _PORTS or not parts.hostname or "\\" in url or port == 0:
            raise InvalidInput("url: is not http://HOST/... or https://HOST/...", field="url")
        if parts.username is not None or parts.password is not None:
            raise InvalidInput("url: holds a user name or password", field="url")
        try:
            literal = ipaddress.ip_address(parts.hostname)
        except ValueError:
            return parts
        self._check(parts.hostname, literal)
        return parts

    def resolve(self, host: str, port: int) -> list[tuple[Any, ...]]:
        """Return the socket addresses of a host. Raises Precondition where one of them is not
        allowed, PeerUnavailable for an unknown name."""
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise PeerUnavailable(f"{host}: {error}") from None
        for *_, address in found:
            self._check(host, ipaddress.ip_address(str(address[0]).partition("%")[0]))
        return found

    def connect(
        self, address: tuple[str, int], timeout: float | None = None, source: Any = None
    ) -> socket.socket:
        """Connect to one of a host's checked addresses, as `socket.create_connection` does."""
        failed: OSError | None = None
        for family, kind, protocol, _, target in self.resolve(*address):
            one = socket.socket(family, kind, protocol)
            try:
                if isinstance(timeout, int | float):
                    one.settimeout(timeout)
                one.connect(target)
            except OSError as error:
                one.close()
                failed = error
                continue
            return one
        raise failed or OSError(f"{address[0]} has no address")

    def post(
        self, url: str, body: bytes, headers: Mapping[str, str], *, timeout_s: float, most: int
    ) -> Answer:
        """Send a body and return the answer, at most `most` bytes of it; follows no redirect.

        Raises what `split` and `resolve` raise, and PeerUnavailable where nobody answers in time.
        """
        parts = self.split(url)
        make = _HTTPSConnection if parts.scheme == "https" else _HTTPConnection
        connection = make(parts.hostname or "", parts.port or _PORTS[parts.scheme], timeout_s, self)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        # A time-out is for each piece; who sends a byte at a time would be waited for much longer.
        deadline = threading.Timer(timeout_s, _cut, [connection])
        deadline.start()
        try:
            connection.request("POST", path, body, dict(headers))
            answer = connection.getresponse()
            return Answer(answer.status, answer.read(most))
        except (OSError, http.client.HTTPException) as error:
            raise PeerUnavailable(f"{parts.hostname} does not answer: {error!r}"[:300]) from None
        finally:
            deadline.cancel()
            connection.close()

    def get(self, url: str, out: BinaryIO, *, timeout_s: float, most: int) -> None:
        """Copy what a URL holds, redirects included. Raises what `post` raises, and InvalidInput
        where it is more than `most` bytes."""
        parts, size = self.split(url), 0
        try:
            with _opener(self).open(url, timeout=timeout_s) as answer:
                while chunk := answer.read(1 << 20):
                    size += len(chunk)
                    if size > most:
                        raise InvalidInput(f"{parts.hostname}: over {most:,} bytes", field="uri")
                    out.write(chunk)
        except urllib.error.HTTPError as error:
            error.close()
            said = HTTPStatus(error.code).phrase if error.code in set(HTTPStatus) else error.code
            raise PeerUnavailable(f"{parts.hostname} answers {said}") from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, StillhouseError):
                raise error.reason from None
            raise PeerUnavailable(f"{parts.hostname}: {error.reason}"[:300]) from None
        except (OSError, http.client.HTTPException) as error:
            raise PeerUnavailable(f"{parts.hostname}: {error!r}"[:300]) from None

    def _check(self, host: str, ip: IP) -> None:
        if not (_is_public(ip) or self._is_named(host, ip)):
            raise Precondition(
                f"{host} is {ip}, which is no public address; whoever runs this gateway can allow "
                "it in GATEWAY_ALLOWED_ADDRESSES",
                differences={"address": str(ip)},
            )

    def _is_named(self, host: str, ip: IP) -> bool:
        for one in self.allowed:
            try:
                if ip in ipaddress.ip_network(one, strict=False):
                    return True
            except ValueError:
                # A name is allowed to be anywhere but where clouds keep their secrets.
                if not ip.is_link_local and fnmatch.fnmatch(host.lower(), one.lower()):
                    return True
        return False


def _is_public(ip: IP) -> bool:
    """Return whether an address is one of the internet, also that inside another."""
    if isinstance(ip, ipaddress.IPv6Address):
        inner = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
        if ip in _NAT64:
            inner.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
        if any(one is not None and not _is_public(one) for one in inner):
            return False
    return ip.is_global and not ip.is_multicast


def _cut(connection: http.client.HTTPConnection) -> None:
    with contextlib.suppress(OSError, AttributeError):  # it ends just now
        connection.sock.shutdown(socket.SHUT_RDWR)


class _HTTPConnection(http.client.HTTPConnection):
    def __init__(self, host: str, port: int, timeout_s: float, addresses: Addresses) -> None:
        super().__init__(host, port, timeout=timeout_s)
        self._create_connection = addresses.connect


class _HTTPSConnection(http.client.HTTPSConnection):
    def __init__(self, host: str, port: int, timeout_s: float, addresses: Addresses) -> None:
        super().__init__(host, port, timeout=timeout_s, context=ssl.create_default_context())
        self._create_connection = addresses.connect


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to http and https alone; each hop connects through `Addresses` again."""

    max_redirections = 5

    def __init__(self, addresses: Addresses) -> None:
        self._addresses = addresses

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        try:
            self._addresses.split(newurl)
        except InvalidInput:
            said = f"{req.host} redirects to something else than http(s)"
            raise urllib.error.URLError(cast("Any", Precondition(said))) from None
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener(addresses: Addresses) -> urllib.request.OpenerDirector:
    """An opener of http and https that knows no proxy, no file and no password."""

    class _Http(urllib.request.HTTPHandler):
        def http_open(self, req: Any) -> Any:
            return self.do_open(_maker(_HTTPConnection, addresses), req)

    class _Https(urllib.request.HTTPSHandler):
        def https_open(self, req: Any) -> Any:
            return self.do_open(_maker(_HTTPSConnection, addresses), req)

    opener = urllib.request.OpenerDirector()
    handlers: Sequence[urllib.request.BaseHandler] = (
        _Http(),
        _Https(),
        _Redirects(addresses),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    )
    for one in handlers:
        opener.add_handler(one)
    return opener


def _maker(kind: Callable[..., Any], addresses: Addresses) -> Any:
    def make(host: str, timeout: float = 30.0, **_: Any) -> Any:
        parts = urlsplit(f"//{host}")
        port = parts.port or (443 if kind is _HTTPSConnection else 80)
        return kind(parts.hostname or "", port, timeout, addresses)

    return make
