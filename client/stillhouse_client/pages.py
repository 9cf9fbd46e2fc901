"""Listing: pages fetched one after the other until the last."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
PAGE_SIZE = 500


async def every(fetch: Callable[[str], Awaitable[tuple[Sequence[T], str]]]) -> AsyncIterator[T]:
    """Yield the items of all pages; `fetch(page_token)` returns items and the next token."""
    token = ""
    while True:
        items, token = await fetch(token)
        for item in items:
            yield item
        if not token:
            return


async def collect(
    fetch: Callable[[str], Awaitable[tuple[Sequence[T], str]]], *, limit: int = 0
) -> list[T]:
    """Return the items of all pages, or the first `limit` of them."""
    found: list[T] = []
    async for item in every(fetch):
        found.append(item)
        if limit and len(found) >= limit:
            break
    return found
