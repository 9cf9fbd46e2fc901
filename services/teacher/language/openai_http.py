"""JSON and event streams of an OpenAI-compatible server, with its failures as our errors."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import httpx2

from services.common.errors import (
    InvalidInput,
    NotFound,
    Overloaded,
    PeerUnavailable,
    Precondition,
    StillhouseError,
)

_MAX_CHARS = 500


class OpenAIServer:
    """One server. Every method raises PeerUnavailable where it is away, Overloaded where it is
    busy, Precondition where it refuses the key, NotFound, or InvalidInput with what it said."""

    def __init__(self, url: str, key: str, *, timeout_s: float, max_bytes: int) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # The environment's proxies are not for a server of the own network.
        self._client = httpx2.AsyncClient(
            headers=headers, timeout=timeout_s, trust_env=False, follow_redirects=False
        )
        self._url, self._max_bytes = url.rstrip("/"), max_bytes

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def get(self, path: str) -> dict[str, Any]:
        """Return the JSON object at a path."""
        async with self._asked("GET", path, None) as reply:
            return _object(await self._body(reply))

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send JSON and return the JSON object of the answer."""
        async with self._asked("POST", path, body) as reply:
            return _object(await self._body(reply))

    async def events(self, path: str, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """Send JSON and yield the objects of the answer's event stream. Leaving early closes the
        connection, which ends the server's work."""
        size = 0
        async with self._asked("POST", path, body) as reply:
            async for line in reply.aiter_lines():
                size += len(line)
                if size > self._max_bytes:
                    raise PeerUnavailable(f"{self._url} answers without end")
                data = line.removeprefix("data:").strip()
                if line.startswith("data:") and data and data != "[DONE]":
                    yield _object(data.encode())

    @asynccontextmanager
    async def _asked(
        self, method: str, path: str, body: dict[str, Any] | None
    ) -> AsyncGenerator[httpx2.Response, None]:
        try:
            async with self._client.stream(method, self._url + path, json=body) as reply:
                if reply.status_code != 200:
                    raise _failure(self._url, reply, await self._body(reply))
                yield reply
        except httpx2.TransportError as error:
            said = str(error)[:_MAX_CHARS] or type(error).__name__
            raise PeerUnavailable(f"{self._url} does not answer: {said}") from None

    async def _body(self, reply: httpx2.Response) -> bytes:
        data = b""
        async for part in reply.aiter_bytes():
            data += part
            if len(data) > self._max_bytes:
                raise PeerUnavailable(f"{self._url} answers more than {self._max_bytes:,} bytes")
        return data


def _object(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise PeerUnavailable("the OpenAI-compatible server does not answer with a JSON object")
    return found


def _failure(url: str, reply: httpx2.Response, data: bytes) -> StillhouseError:
    said, status = _message(data), reply.status_code
    if status in (401, 403):
        return Precondition(f"{url} refuses the key; set TEACHER_OPENAI_API_KEY: {said}")
    if status == 404:
        return NotFound(f"{url}: {said or 'not found'}", resource=url)
    if status == 429:
        wait = reply.headers.get("retry-after", "")
        return Overloaded(f"{url}: {said}", retry_after_s=float(wait) if wait.isdigit() else 5.0)
    if status in (400, 413, 422):
        return InvalidInput(f"{url}: {said}")
    return PeerUnavailable(f"{url} answers {status}: {said}", retry_after_s=5.0)


def _message(data: bytes) -> str:
    """What a server says of a failure: `error.message`, `detail`, or the beginning of the body."""
    try:
        found = json.loads(data)
        error = found.get("error", found.get("detail", ""))
        text = error.get("message", "") if isinstance(error, dict) else error
    except (ValueError, AttributeError, RecursionError):
        text = data.decode(errors="replace")
    return str(text)[:_MAX_CHARS]
