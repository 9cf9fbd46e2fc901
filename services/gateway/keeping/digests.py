"""Finds digests in JSON and in text, with the path of the field they stand in."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

Path = tuple[str, ...]
_DIGEST = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


def digests_in(data: str | bytes) -> Iterator[tuple[Path, str]]:
    """Yield (path, digest) of JSON; of what is not JSON, all digests in it, with an empty path."""
    text = data.decode("utf-8", "replace") if isinstance(data, bytes) else data
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text
    yield from _walk(value, ())


def _walk(value: object, path: Path) -> Iterator[tuple[Path, str]]:
    """Lists do not lengthen a path; neither does a key that is itself a digest, which is told."""
    if isinstance(value, str):
        yield from ((path, digest) for digest in _DIGEST.findall(value))
    elif isinstance(value, list):
        for one in value:
            yield from _walk(one, path)
    elif isinstance(value, dict):
        for key, one in value.items():
            is_digest = _DIGEST.fullmatch(key) is not None
            if is_digest:
                yield path, key
            yield from _walk(one, path if is_digest else (*path, key))
