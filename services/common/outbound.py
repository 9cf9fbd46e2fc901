"""Calls to addresses that a request names: none but public ones, unless a setting allows more.

A name is resolved once, its addresses are checked, and the connection goes to a checked address:
what the name resolves to later, or in another answer, does not matter. Redirects are requests of
their own and checked like the first. Blocking.
"""

from __future__ import annotations

import fnmatch
import http.client
import ipaddress
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, BinaryIO, cast
from urllib.parse import SplitResult, urlsplit

from services.common.connections import (
    Connection,
    HTTPConnection,
    HTTPSConnection,
    Pace,
    within,
)
from services.common.errors import (
    InvalidInput,
    PeerUnavailable,
    Precondition,
    StillhouseError,
)

_PORTS = {"http": 80, "https": 443}
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_METADATA = ipaddress.ip_address("fd00:ec2::254")
"""Where a cloud keeps its secrets, at an address that is not link-local."""
_MOST_ADDRESSES = 4
"""Of one name, that are tried."""
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
        if not url.isascii() or not url.isprintable():
            raise InvalidInput(
                "url: write other letters than ASCII's as %XX, and such a host as xn--...",
                field="url",
            )
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
        self,
        address: tuple[str, int],
        timeout: float | None = None,
        source: Any = None,
        *,
        until_s: float = float("inf"),
    ) -> socket.socket:
        """Connect to one of a host's checked addresses, as `socket.create_connection` does, before
        the monotonic clock shows `until_s`: all addresses share that time."""
        failed: OSError | None = None
        for family, kind, protocol, _, target in self.resolve(*address)[:_MOST_ADDRESSES]:
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError("timed out")
            one = socket.socket(family, kind, protocol)
            try:
                one.settimeout(left_s if timeout is None else min(timeout, left_s))
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
        make = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        port = parts.port or _PORTS[parts.scheme]
        connection = make(parts.hostname or "", port, timeout_s, self.connect)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        try:
            with within(timeout_s, [connection]):
                connection.request("POST", path, body, dict(headers))
                answer = connection.getresponse()
                return Answer(answer.status, answer.read(most))
        # ValueError: what a header or a host may hold is looked at last by the library.
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise PeerUnavailable(f"{parts.hostname} does not answer: {error!r}"[:300]) from None
        finally:
            connection.close()

    def get(
        self,
        url: str,
        out: BinaryIO,
        *,
        timeout_s: float,
        most: int,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        """Copy what a URL holds, redirects included. `timeout_s` is for the answer's beginning, and
        for each piece after it.

        Raises what `post` raises, PeerUnavailable also for a download that is very slow,
        InvalidInput where it is more than `most` bytes, Cancelled where `stopping` says so.
        """
        parts = self.split(url)
        opened: list[Connection] = []
        opener = _opener(self, opened)
        try:
            with within(timeout_s, opened):
                found = opener.open(url, timeout=timeout_s)
            with found as answer, Pace(opened, str(parts.hostname), stopping) as pace:
                while chunk := answer.read1(1 << 18):
                    pace.size += len(chunk)
                    if pace.size > most:
                        raise InvalidInput(f"{parts.hostname}: over {most:,} bytes", field="uri")
                    out.write(chunk)
                if answer.length:
                    raise PeerUnavailable(f"{parts.hostname} ended in the middle")
        except urllib.error.HTTPError as error:
            error.close()
            said = HTTPStatus(error.code).phrase if error.code in set(HTTPStatus) else error.code
            raise PeerUnavailable(f"{parts.hostname} answers {said}") from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, StillhouseError):
                raise error.reason from None
            raise PeerUnavailable(f"{parts.hostname}: {error.reason}"[:300]) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
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
                if not _is_metadata(ip) and fnmatch.fnmatch(host.lower(), one.lower()):
                    return True
        return False


def _is_public(ip: IP) -> bool:
    """Return whether an address is one of the internet, also that inside another."""
    if not all(_is_public(one) for one in _inside(ip)):
        return False
    return ip.is_global and not ip.is_multicast


def _is_metadata(ip: IP) -> bool:
    """Return whether an address, or one inside it, is where clouds answer about themselves."""
    return ip == _METADATA or any(one.is_link_local for one in (ip, *_inside(ip)))


def _inside(ip: IP) -> list[ipaddress.IPv4Address]:
    """Return the addresses that an IPv6 address stands for."""
    if not isinstance(ip, ipaddress.IPv6Address):
        return []
    found = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
    if ip in _NAT64:
        found.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
    return [one for one in found if one is not None]


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to http and https alone; each hop connects through `Addresses` again."""

    max_redirections = 5

    def __init__(self, addresses: Addresses) -> None:
        self._addresses = addresses

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        fp.close()  # the library would read a redirect's body to its end, however long that is
        try:
            self._addresses.split(newurl)
        except InvalidInput:
            said = f"{req.host} redirects to something else than http(s)"
            raise urllib.error.URLError(cast("Any", Precondition(said))) from None
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener(addresses: Addresses, opened: list[Connection]) -> urllib.request.OpenerDirector:
    """An opener of http and https that knows no proxy, no file and no password; it notes the
    connections it makes."""

    class _Http(urllib.request.HTTPHandler):
        def http_open(self, req: Any) -> Any:
            return self.do_open(_maker(HTTPConnection, addresses, opened), req)

    class _Https(urllib.request.HTTPSHandler):
        def https_open(self, req: Any) -> Any:
            return self.do_open(_maker(HTTPSConnection, addresses, opened), req)

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


def _maker(kind: Callable[..., Any], addresses: Addresses, opened: list[Connection]) -> Any:
    def make(host: str, timeout: float = 30.0, **_: Any) -> Any:
        parts = urlsplit(f"//{host}")
        port = parts.port or (443 if kind is HTTPSConnection else 80)
        opened.append(kind(parts.hostname or "", port, timeout, addresses.connect))
        return opened[-1]

    return make
