"""What keys and session tokens look like: `shk_ID_SECRET`, of which only a digest is stored."""

from __future__ import annotations

import hashlib
import re
import secrets
from typing import NamedTuple

KEY, SESSION = "shk", "shs"
_ID_CHARACTERS = "abcdefghijklmnopqrstuvwxyz234567"
_ID_LENGTH = 15
_SECRET_BYTES = 32
_FORM = re.compile(r"(shk|shs)_([a-z][a-z0-9]{7,31})_([A-Za-z0-9_-]{32,128})")


class Presented(NamedTuple):
    """A key or token as its holder sends it: what it is found by, and what proves it."""

    kind: str
    id: str
    digest: bytes


def make(kind: str) -> tuple[str, str]:
    """Return (the text that its holder sends, its id); 256 bits of it are random."""
    one = "k" + "".join(secrets.choice(_ID_CHARACTERS) for _ in range(_ID_LENGTH))
    return f"{kind}_{one}_{secrets.token_urlsafe(_SECRET_BYTES)}", one


def read(text: str) -> Presented | None:
    """Return what a text is; None where it is neither a key nor a token of ours."""
    found = _FORM.fullmatch(text)
    if found is None:
        return None
    return Presented(found[1], found[2], hashlib.sha256(text.encode()).digest())
