"""Pages of lists: sizes are clamped, tokens are opaque and belong to the list that they were made
for."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from services.common.errors import InvalidInput

R = TypeVar("R")
DEFAULT_SIZE = 100
MAX_SIZE = 1000


@dataclass(frozen=True)
class Page:
    """A request for at most `size` rows after `position` (0 is the start) of the list `scope`
    names."""

    size: int
    position: int
    scope: str

    def token(self, position: int) -> str:
        """Return the token of the page that starts after `position`."""
        text = json.dumps([self.scope, position], separators=(",", ":"))
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    def cut(self, rows: Sequence[R], positions: Sequence[int]) -> tuple[list[R], str]:
        """Return (the page's rows, token of the next page or empty) of up to `size` + 1 rows
        read."""
        more = len(rows) > self.size
        kept = list(rows[: self.size])
        return kept, self.token(positions[self.size - 1]) if more else ""


def page(page_size: int, page_token: str, *filters: str) -> Page:
    """Read a list request's paging; `filters` are the request's other fields, which the token is
    bound to.

    A size of 0 means 100, one above 1,000 is clamped. Raises InvalidInput for a negative size and
    for a
    token that is malformed or of another list.
    """
    if page_size < 0:
        raise InvalidInput("page_size: must not be negative", field="page_size")
    size = min(page_size or DEFAULT_SIZE, MAX_SIZE)
    scope = hashlib.sha256("\0".join(filters).encode()).hexdigest()[:16]
    return Page(size, _position(page_token, scope) if page_token else 0, scope)


def _position(token: str, scope: str) -> int:
    try:
        padded = token + "=" * (-len(token) % 4)
        got_scope, position = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (ValueError, TypeError, binascii.Error):
        raise InvalidInput("page_token: is not one of ours", field="page_token") from None
    if got_scope != scope or not isinstance(position, int) or not 0 <= position < 1 << 62:
        raise InvalidInput(
            "page_token: belongs to another list; keep the other fields of the request",
            field="page_token",
        )
    return position
