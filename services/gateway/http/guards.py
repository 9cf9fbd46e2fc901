"""Checks before any route: which name the gateway was called by, and from whose page.

A page of another site may make a browser send requests here. It cannot read the answers, but it
could change something (hence Origin and Sec-Fetch-Site), and it can let its own host name resolve
to this machine and then read everything (hence Host).
"""

from __future__ import annotations

import uuid
from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.common.callers import REQUEST_ID, is_id
from services.common.hosts import is_loopback
from services.gateway.http import statuses

_SAFE = ("GET", "HEAD", "OPTIONS")
_SAME_SITE = ("", "same-origin", "none")
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' blob: data:; style-src 'self'; "
        # Attributes alone: components place things by them, and they cannot fetch.
        "style-src-attr 'unsafe-inline'; connect-src 'self'; object-src 'none'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Guards:
    """ASGI middleware: refuses with 403, and sets the headers that every answer carries."""

    def __init__(self, app: ASGIApp, host: str, allowed_hosts: Collection[str]) -> None:
        self._app = app
        self._allowed = {name.lower() for name in allowed_hosts}
        self._any_host = not is_loopback(host) and not self._allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        given = headers.get(REQUEST_ID, "")
        request_id = given if is_id(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                _add(MutableHeaders(scope=message), request_id)
            await send(message)

        reason, said = self._refusal(scope["method"], headers)
        app: Any = self._app
        if reason:
            app = statuses.response(statuses.make("PERMISSION_DENIED", said, reason=reason))
        await app(scope, receive, send_guarded)

    def _refusal(self, method: str, headers: Headers) -> tuple[str, str]:
        """Return reason and text of a refusal; both empty for a request that may go on."""
        host = headers.get("host", "")
        if not self._may_call(host):
            return "HOST_NOT_ALLOWED", (
                f"this gateway does not answer to the host name {host[:100]!r}; "
                "add it to GATEWAY_ALLOWED_HOSTS"
            )
        if method not in _SAFE and not _is_own_page(headers, host):
            return "CROSS_SITE", "pages of another site may not change anything here"
        return "", ""

    def _may_call(self, host: str) -> bool:
        name = _name_of(host)
        return self._any_host or is_loopback(name) or name in self._allowed


def _name_of(host: str) -> str:
    """Return the name of a Host header without its port; empty where it is none."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _is_own_page(headers: Headers, host: str) -> bool:
    """Return whether a request comes from no page at all, or from one of this gateway's own."""
    if headers.get("sec-fetch-site", "") not in _SAME_SITE:
        return False
    origin = headers.get("origin")
    return origin is None or origin.lower().partition("://")[2] == host.lower()


def _add(headers: MutableHeaders, request_id: str) -> None:
    for name, value in _HEADERS.items():
        headers.setdefault(name, value)
    headers[REQUEST_ID] = request_id
