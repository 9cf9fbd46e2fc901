"""Cuts the items of a batch call so that each part keeps to the limits a service publishes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from stillhouse.common.v1 import info_pb2

T = TypeVar("T")
_ITEMS, _MESSAGE_BYTES = 256, 32 << 20
_ROOM_BYTES = 8 << 20
"""Larger messages stop the event loops of both sides for longer than a batch computes."""
_ITEM_BYTES = 64
"""What an item takes beside its contents: names, tags, lengths."""


def in_parts(
    items: Sequence[T], bytes_of: Callable[[T], int], limits: info_pb2.Limits
) -> list[list[T]]:
    """Return the items in lists, in order, of at most `max_batch_items` each, and of half a
    message or 8 MiB, whichever is less.

    `bytes_of` tells what an item takes in the request or in the answer, whichever is more. Limits
    that are 0 are taken as the usual ones. An item larger than a message is alone in its list, so
    that it fails alone.
    """
    most = limits.max_batch_items or _ITEMS
    room = min((limits.max_message_bytes or _MESSAGE_BYTES) // 2, _ROOM_BYTES)
    parts: list[list[T]] = []
    used = 0
    for item in items:
        size = bytes_of(item) + _ITEM_BYTES
        if not parts or len(parts[-1]) >= most or used + size > room:
            parts.append([])
            used = 0
        parts[-1].append(item)
        used += size
    return parts
