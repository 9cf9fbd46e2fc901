"""Pages of rows that have positions: `services.common.pages` for lists read from the database."""

from __future__ import annotations

import base64
import hmac
import itertools
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from services.common import pages
from services.common.errors import InvalidInput

R = TypeVar("R")
MAX_SIZE = pages.MAX_SIZE
MAX_BYTES = 8 << 20
"""Texts in one page, in bytes; far below the largest message."""
_MARK_BYTES = 16
_FOREIGN = "page_token: not a token of this list; keep the other fields of the request"
_key = secrets.token_bytes(32)


def sign_with(key: bytes) -> None:
    """Sign tokens with a key that all gateways on a database share; until then each process has
    one of its own."""
    global _key
    _key = key


@dataclass(frozen=True)
class Page:
    """A request for at most `size` rows after `position` (0: the start) of the list `scope`."""

    size: int
    position: int
    scope: str

    def token(self, position: int) -> str:
        """Return the token of the page that starts after `position`."""
        return seal(str(position), self.scope)

    def cut(
        self, rows: Sequence[R], positions: Sequence[int], lengths: Sequence[int] = ()
    ) -> tuple[list[R], str]:
        """Return (the page's rows, token of the next or "") of up to `size` + 1 rows read.

        `lengths`, the bytes of each row, end a page early where it would be too large to send.
        """
        count = min(self.size, fitting(lengths)) if lengths else self.size
        kept = list(rows[:count])
        return kept, self.token(positions[count - 1]) if len(rows) > count else ""


def fitting(lengths: Sequence[int]) -> int:
    """Return how many rows of these lengths (bytes) fit into a page; one always does."""
    sums = itertools.accumulate(lengths)
    return max(sum(1 for total in sums if total <= MAX_BYTES), 1)


def page(page_size: int, page_token: str, *filters: str) -> Page:
    """Read a list request's paging; `filters`, its other fields, are what the token is bound to.

    A size of 0 means 100, one above 1,000 is clamped. Raises InvalidInput for a negative size and
    for a token that is malformed or of another list.
    """
    scope = "\0".join(filters)
    said = unseal(page_token, scope)
    return Page(pages.check_size(page_size), int(said) if said else 0, scope)


def seal(said: str, scope: str) -> str:
    """Return a token that says something about the list `scope`, the project among it. Nobody else
    can make one, or use it for another list."""
    return base64.urlsafe_b64encode(_mark(said, scope) + said.encode()).decode()


def unseal(token: str, scope: str) -> str:
    """Return what a token of that list says, an empty text for an empty one.

    Raises InvalidInput for one that is of another list, changed or made up.
    """
    if not token:
        return ""
    try:
        raw = base64.b64decode(token.encode(), altchars=b"-_", validate=True)
        mark, said = raw[:_MARK_BYTES], raw[_MARK_BYTES:].decode()
    except ValueError:
        raise InvalidInput(_FOREIGN, field="page_token") from None
    if not hmac.compare_digest(mark, _mark(said, scope)):
        raise InvalidInput(_FOREIGN, field="page_token")
    return said


def _mark(said: str, scope: str) -> bytes:
    data = f"{scope}\0\0{said}".encode()
    return hmac.digest(_key, data, "sha256")[:_MARK_BYTES]
