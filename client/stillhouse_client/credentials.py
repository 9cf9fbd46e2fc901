"""API keys: where the client finds one, where `stillhouse login` keeps it, and how one is made."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path

from stillhouse_client import settings
from stillhouse_client.errors import InvalidRequest

_PRIVATE = 0o600
_OTHERS = 0o077
_ID_CHARACTERS = "abcdefghijklmnopqrstuvwxyz234567"
_ID_LENGTH = 15
_SECRET_BYTES = 32


def find(address: str) -> str:
    """Return the key for a gateway: of the environment, or what was kept for its address.

    Empty where there is none. Raises InvalidRequest for a file that others can read.
    """
    return settings.api_key() or _read(settings.credentials_file()).get(address, "")


def keep(address: str, key: str) -> Path:
    """Keep a key for a gateway's address, readable by the user alone; return the file."""
    file = settings.credentials_file()
    _write(file, {**_read(file), address: key})
    return file


def forget(address: str) -> bool:
    """Remove the key kept for an address; return whether there was one."""
    file = settings.credentials_file()
    known = _read(file)
    found = known.pop(address, None)
    if found is not None:
        _write(file, known)
    return found is not None


def make_admin_key(file: Path) -> None:
    """Write a new key into a new file, for GATEWAY_ADMIN_KEY_FILE. Raises InvalidRequest."""
    one = "k" + "".join(secrets.choice(_ID_CHARACTERS) for _ in range(_ID_LENGTH))
    key = f"shk_{one}_{secrets.token_urlsafe(_SECRET_BYTES)}"
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _PRIVATE)
    except FileExistsError:
        raise InvalidRequest(f"{file} exists already", hint="give another name") from None
    except OSError as error:
        raise InvalidRequest(f"cannot write {file}: {error.strerror}") from None
    with os.fdopen(handle, "w") as out:
        out.write(key + "\n")


def _read(file: Path) -> dict[str, str]:
    try:
        mode, text = file.stat().st_mode, file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    if mode & _OTHERS:
        raise InvalidRequest(f"others can read {file}", hint=f"run: chmod 600 {file}")
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InvalidRequest(f"{file} is damaged", hint="remove it and run `stillhouse login`")
    return {str(address): str(key) for address, key in found.items()}


def _write(file: Path, known: dict[str, str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _PRIVATE)
    with os.fdopen(handle, "w") as out:
        json.dump(known, out, indent=1)
    fresh.replace(file)
