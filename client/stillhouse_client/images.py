"""Image files of a folder as request items, in batches that keep to the server's limits.

A server refuses a message that is too large as a whole; an image that no message could hold is
therefore answered for here, so that it fails alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from google.rpc import code_pb2, status_pb2
from stillhouse.common.v1 import info_pb2, items_pb2

from stillhouse_client.errors import InvalidRequest

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_OVERHEAD_BYTES = 1024
_MESSAGE_BYTES = 32 << 20


def find(path: Path) -> list[Path]:
    """Return the image files of a folder, sorted, or the file itself. Raises InvalidRequest."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InvalidRequest(f"{path} does not exist", hint="give an image or a folder of images")
    found = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not found:
        raise InvalidRequest(f"no images in {path}", hint=f"looked for {', '.join(SUFFIXES)}")
    return found


def to_input(path: Path, base: Path | None = None) -> items_pb2.ImageInput:
    """Return a file as a request item named by its path, relative to `base`."""
    name = path.relative_to(base).as_posix() if base and path.is_relative_to(base) else str(path)
    return items_pb2.ImageInput(item_id=name[-256:], data=path.read_bytes())


def batches(
    items: Iterator[items_pb2.ImageInput], limits: info_pb2.Limits
) -> Iterator[list[items_pb2.ImageInput]]:
    """Yield items in lists that keep to `max_batch_items` and half of `max_message_bytes`; one that
    is larger is alone in its list."""
    most = limits.max_batch_items or 256
    room = (limits.max_message_bytes or _MESSAGE_BYTES) // 2
    batch: list[items_pb2.ImageInput] = []
    used = 0
    for item in items:
        size = item.ByteSize() + _OVERHEAD_BYTES
        if batch and (len(batch) >= most or used + size > room):
            yield batch
            batch, used = [], 0
        batch.append(item)
        used += size
    if batch:
        yield batch


def refusal(
    batch: Sequence[items_pb2.ImageInput], limits: info_pb2.Limits
) -> status_pb2.Status | None:
    """Return why no server could be sent a batch of `batches`; None where it can be."""
    most = limits.max_message_bytes or _MESSAGE_BYTES
    if len(batch) > 1 or batch[0].ByteSize() + _OVERHEAD_BYTES <= most:
        return None
    size = len(batch[0].data)
    return status_pb2.Status(
        code=code_pb2.INVALID_ARGUMENT,
        message=f"the image has {size:,} bytes, a message holds {most:,}",
    )
