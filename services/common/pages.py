"""Page tokens: opaque, bound to what was asked, the same rules for every list call."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from typing import TypeVar

from services.common.errors import InvalidInput

T = TypeVar("T")
DEFAULT_SIZE = 100
MAX_SIZE = 1000
_MAX_OFFSET = 1 << 62


def check_size(page_size: int) -> int:
    """Return the page size in force: 0 is the default, large is clamped.

    Raises InvalidInput below 0.
    """
    if page_size < 0:
        raise InvalidInput("page_size: must not be negative", field="page_size")
    return min(page_size or DEFAULT_SIZE, MAX_SIZE)


def encode(offset: int, scope: str) -> str:
    """Return the token of the page that starts at `offset` of the list that `scope` selects."""
    return base64.urlsafe_b64encode(f"{offset}:{_mark(scope)}".encode()).decode()


def decode(token: str, scope: str) -> int:
    """Return a token's offset, 0 for an empty one.

    Raises InvalidInput for a foreign or damaged token.
    """
    if not token:
        return 0
    try:
        offset, mark = base64.urlsafe_b64decode(token.encode()).decode().split(":")
        number = int(offset)
    except ValueError:
        number, mark = -1, ""
    if not 0 <= number < _MAX_OFFSET or mark != _mark(scope):
        raise InvalidInput(
            "page_token: not a token of this list; keep the other fields of the request",
            field="page_token",
        )
    return number


def page(items: Sequence[T], page_size: int, token: str, *, scope: str) -> tuple[list[T], str]:
    """Return one page of `items` and the token of the next ("" on the last)."""
    start, size = decode(token, scope), check_size(page_size)
    chosen = list(items[start : start + size])
    more = start + size < len(items)
    return chosen, encode(start + size, scope) if more else ""


def _mark(scope: str) -> str:
    return hashlib.sha256(scope.encode()).hexdigest()[:12]
