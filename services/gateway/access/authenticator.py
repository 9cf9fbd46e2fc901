"""Finds out who calls: an API key, a token of an identity provider, or a browser's session."""

from __future__ import annotations

import asyncio
import functools
import hmac
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any

from stillhouse.common.v1 import access_pb2
from stillhouse.gateway.v1 import access_pb2 as pb

from services.common import logs
from services.common.errors import CredentialsExpired, CredentialsMissing, Unauthenticated
from services.gateway.access import api_keys, key_format, sessions
from services.gateway.access.identity import EVERY, LOCAL, Identity, as_role
from services.gateway.access.key_format import Presented
from services.gateway.access.lookups import Lookups
from services.gateway.access.tables import ApiKeyRow, SessionRow
from services.gateway.access.tokens import Tokens
from services.gateway.settings import GatewaySettings
from services.gateway.store import Store

COOKIE = "stillhouse_session"
_BEARER = "bearer "
_USED_S = 60.0
_MISSING = (
    "this gateway asks who calls: send an API key as `authorization: Bearer KEY`, or set "
    "STILLHOUSE_API_KEY, or run `stillhouse login`"
)
_log = logs.get(__name__)


@dataclass(frozen=True, slots=True)
class _Key:
    """A key as it was looked up, with whom it stands for: made once, not for every call."""

    identity: Identity
    digest: bytes
    expires: float
    is_revoked: bool
    last_used: float


class Authenticator:
    """Turns the metadata of a call into an Identity. Use from one event loop."""

    def __init__(self, settings: GatewaySettings, store: Store) -> None:
        self._store = store
        self._asks = settings.auth == "required"
        self._admin = read_admin_key(settings.admin_key_file) if self._asks else None
        self._tokens = Tokens.of(settings) if self._asks else None
        keep_s = settings.key_cache_s
        self.keys: Lookups[_Key] = Lookups(self._load_keys, keep_s=keep_s)
        self.sessions: Lookups[SessionRow] = Lookups(
            functools.partial(sessions.get_many, store), keep_s=keep_s
        )
        self._touched: dict[str, float] = {}
        self._touching: set[asyncio.Task[None]] = set()

    async def identify(self, metadata: Mapping[str, Any]) -> Identity:
        """Return who calls. Raises Unauthenticated."""
        if not self._asks:
            return LOCAL
        header = metadata.get("authorization")
        if header:
            return await self._of_bearer(str(header))
        token = _session_of(str(metadata.get("cookie", "")))
        if not token:
            raise CredentialsMissing(_MISSING)
        return await self._of_session(token)

    async def _of_bearer(self, header: str) -> Identity:
        if header[: len(_BEARER)].lower() != _BEARER:
            raise Unauthenticated("authorization: use `Bearer KEY`")
        given = header[len(_BEARER) :].strip()
        presented = key_format.read(given)
        if presented is not None and presented.kind == key_format.KEY:
            return await self._of_key(presented)
        if self._tokens is not None and given.count(".") == 2:
            return await self._tokens.identify(given)
        raise Unauthenticated("this is no valid API key")

    async def _of_key(self, presented: Presented) -> Identity:
        admin = self._admin
        if admin is not None and presented.id == admin.id:
            if not hmac.compare_digest(presented.digest, admin.digest):
                raise Unauthenticated("this is no valid API key")
            return _admin_identity(admin.id)
        row = await self.keys.get(presented.id)
        if row is None or not hmac.compare_digest(presented.digest, row.digest):
            raise Unauthenticated("this is no valid API key")
        return self._of_known(presented.id, row)

    def _load_keys(self, ids: Sequence[str]) -> Mapping[str, _Key]:
        rows = api_keys.get_many(self._store, ids)
        return {one: _known(row) for one, row in rows.items()}

    def _of_known(self, key_id: str, row: _Key) -> Identity:
        """Return whom a key stands for. Raises Unauthenticated for one that is good no more."""
        now = time.time()
        if row.is_revoked:
            raise CredentialsExpired("this API key was revoked; ask an admin for a new one")
        if row.expires <= now:
            raise CredentialsExpired("this API key has expired; ask an admin for a new one")
        if now - max(row.last_used, self._touched.get(key_id, 0.0)) > _USED_S:
            self._touch(key_id, now)
        return row.identity

    async def _of_session(self, token: str) -> Identity:
        presented = key_format.read(token)
        if presented is None or presented.kind != key_format.SESSION:
            raise Unauthenticated("this is no session; log in again")
        row = await self.sessions.get(presented.id)
        if row is None or not hmac.compare_digest(presented.digest, row.digest):
            raise CredentialsExpired("this session has ended; log in again")
        if row.expires <= time.time():
            raise CredentialsExpired("this session has ended; log in again")
        if row.key_id:
            await self._check_key(row.key_id)
        return Identity(
            row.subject,
            row.display_name,
            pb.CREDENTIAL_KIND_SESSION,
            json.loads(row.grants_json),
            row.expires,
            session=row.session_id,
        )

    async def _check_key(self, key_id: str) -> None:
        """Raise Unauthenticated where the key that a session was opened with is good no more."""
        if self._admin is not None and key_id == self._admin.id:
            return
        row = await self.keys.get(key_id)
        if row is None:
            raise CredentialsExpired("this session has ended; log in again")
        self._of_known(key_id, row)

    def _touch(self, key_id: str, used: float) -> None:
        """Note that a key is used, beside the call; a failure costs a time of last use."""
        self._touched[key_id] = used
        task = asyncio.create_task(self._note(key_id, used), name="key used")
        self._touching.add(task)
        task.add_done_callback(self._touching.discard)

    async def _note(self, key_id: str, used: float) -> None:
        try:
            await asyncio.to_thread(api_keys.touch, self._store, key_id, used)
        except Exception as error:
            _log.warning("cannot note that a key was used", key=key_id, why=str(error)[:200])

    async def close(self) -> None:
        """Wait until what runs beside calls has ended."""
        await asyncio.gather(*self._touching, return_exceptions=True)


def key_of(identity: Identity) -> str:
    """Return the id of the key that a caller has; empty where he has none."""
    kind, _, one = identity.subject.partition("/")
    return one if kind == "apiKeys" else ""


def read_admin_key(path: Path | None) -> Presented | None:
    """Return the key of every project that a file holds. Raises ValueError where it has none."""
    if path is None:
        return None
    found = key_format.read(path.read_text(encoding="utf-8").strip())
    if found is None or found.kind != key_format.KEY:
        raise ValueError(f"{path} holds no key; make one with `stillhouse keys admin FILE`")
    if path.stat().st_mode & 0o002:
        raise ValueError(f"{path} can be written by everybody; run chmod 600 {path}")
    return found


def _admin_identity(key_id: str) -> Identity:
    grants = {EVERY: access_pb2.ROLE_ADMIN}
    return Identity(f"apiKeys/{key_id}", "admin key file", pb.CREDENTIAL_KIND_API_KEY, grants)


def _known(row: ApiKeyRow) -> _Key:
    identity = Identity(
        f"apiKeys/{row.key_id}",
        row.display_name,
        pb.CREDENTIAL_KIND_API_KEY,
        {row.project: as_role(row.role)},
        row.expires,
    )
    revoked = row.revoked is not None
    return _Key(identity, row.digest, row.expires, revoked, row.last_used or 0.0)


def _session_of(cookies: str) -> str:
    """Return the session's token of a Cookie header; empty where there is none."""
    if COOKIE not in cookies:
        return ""
    try:
        found = SimpleCookie(cookies).get(COOKIE)
    except CookieError:
        return ""
    return "" if found is None else found.value
