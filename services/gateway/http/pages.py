"""Serves the workbench: the files that `make web` builds, read once and kept in memory.

Names of built files carry a hash of their content, so browsers keep them for ever; index.html is
asked for each time.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import mimetypes
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from services.gateway.http import statuses

WEB_DIST = Path(__file__).parent.parent / "web_dist"
_INDEX = "index.html"
_MISSING = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Stillhouse</title>
<h1>The workbench is not built yet</h1>
<p>Run <code>make web</code> and load this page again. The API works without it: see
<a href="/openapi.json">/openapi.json</a>.</p></html>"""
_SQUEEZED = ("text/", "application/json", "application/javascript", "image/svg+xml")


@dataclass(frozen=True)
class _Page:
    modified_ns: int
    body: bytes
    squeezed: bytes
    """The body under gzip; empty where that gains nothing."""
    media_type: str
    etag: str


class Pages:
    """The files of one folder, by URL path."""

    def __init__(self, folder: Path = WEB_DIST) -> None:
        self._folder = folder.resolve()
        self._pages: dict[str, _Page] = {}

    async def __call__(self, request: Request) -> Response:
        """Answer a request for `/` or a file."""
        path = str(request.scope["path"]).lstrip("/") or _INDEX
        page = await asyncio.to_thread(self._read, path)
        if page is None and path == _INDEX:
            return HTMLResponse(_MISSING, 503)
        if page is None:
            return statuses.response(statuses.make("NOT_FOUND", f"there is no /{path[:200]}"))
        headers = {"ETag": page.etag, "Cache-Control": _cache(path), "Vary": "Accept-Encoding"}
        if request.headers.get("if-none-match") == page.etag:
            return Response(status_code=304, headers=headers)
        body = page.body
        if page.squeezed and "gzip" in request.headers.get("accept-encoding", ""):
            body, headers["Content-Encoding"] = page.squeezed, "gzip"
        return Response(body, headers=headers, media_type=page.media_type)

    def _read(self, path: str) -> _Page | None:
        try:
            file = (self._folder / path).resolve()
            if not file.is_relative_to(self._folder) or not file.is_file():
                return None
            modified_ns = file.stat().st_mtime_ns
        except (OSError, ValueError):  # a name no file can have, or a file removed just now
            return None
        known = self._pages.get(path)
        if known is None or known.modified_ns != modified_ns:
            known = self._pages[path] = _page(file, modified_ns)
        return known


def _page(file: Path, modified_ns: int) -> _Page:
    body = file.read_bytes()
    media_type = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    if media_type == "text/javascript" or file.suffix in (".js", ".mjs"):
        media_type = "text/javascript; charset=utf-8"
    squeezed = gzip.compress(body, 6, mtime=0) if media_type.startswith(_SQUEEZED) else b""
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    return _Page(modified_ns, body, squeezed, media_type, etag)


def _cache(path: str) -> str:
    hashed = path.startswith("assets/")
    return "public, max-age=31536000, immutable" if hashed else "no-cache"
