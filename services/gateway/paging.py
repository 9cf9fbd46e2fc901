"""Pages of rows that have positions: `services.common.pages` for lists read from the database."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from services.common import pages

R = TypeVar("R")
MAX_SIZE = pages.MAX_SIZE
MAX_BYTES = 8 << 20
"""Texts in one page, in bytes; far below the largest message."""


@dataclass(frozen=True)
class Page:
    """A request for at most `size` rows after `position` (0: the start) of the list `scope`."""

    size: int
    position: int
    scope: str

    def token(self, position: int) -> str:
        """Return the token of the page that starts after `position`."""
        return pages.encode(position, self.scope)

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
    return Page(pages.check_size(page_size), pages.decode(page_token, scope), scope)
