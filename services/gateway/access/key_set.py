"""The public keys of an identity provider: fetched off the loop, kept, and looked up by id."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from jwt import PyJWK, PyJWKSet
from jwt.exceptions import PyJWTError

from services.common import logs
from services.common.errors import PeerUnavailable
from services.common.hosts import is_loopback

KEEP_S = 600.0
"""How long keys count as current; one that a provider withdraws is refused after that."""
LONGEST_S = 3_600.0
"""How long keys are used while the provider cannot be asked."""
PAUSE_S = 60.0
"""Shortest time between two fetches, whatever ids callers come with."""
_FETCH_S = 5.0
_MOST_BYTES = 1 << 20
_WELL_KNOWN = "/.well-known/openid-configuration"
_log = logs.get(__name__)


class KeySet:
    """Keys by id (`kid`). Use from one event loop."""

    def __init__(self, issuer: str, url: str) -> None:
        """Take keys from `url`; where it is empty, from where the issuer's configuration says."""
        self._issuer, self._url = issuer, url
        self._keys: dict[str, PyJWK] = {}
        self._fetched_s = self._tried_s = float("-inf")
        self._fetching: asyncio.Task[None] | None = None

    async def get(self, kid: str) -> PyJWK | None:
        """Return the key of that id, None where the provider has none.

        An unknown id makes it look again, once in PAUSE_S at most. Raises PeerUnavailable where
        the provider could not be asked yet.
        """
        now = time.monotonic()
        stale = now - self._fetched_s > KEEP_S
        if (kid not in self._keys or stale) and now - self._tried_s > PAUSE_S:
            await self._fetch()
        elif kid not in self._keys and self._fetching is not None:
            await asyncio.shield(self._fetching)
        if time.monotonic() - self._fetched_s > LONGEST_S:
            said = "the identity provider's keys cannot be fetched now; try again"
            raise PeerUnavailable(said, retry_after_s=PAUSE_S)
        return self._keys.get(kid)

    async def _fetch(self) -> None:
        """Fetch once for all who wait."""
        self._tried_s = time.monotonic()
        if self._fetching is None or self._fetching.done():
            self._fetching = asyncio.create_task(self._replace(), name="identity provider's keys")
        await asyncio.shield(self._fetching)

    async def _replace(self) -> None:
        try:
            self._keys = await asyncio.to_thread(self._load)
            self._fetched_s = time.monotonic()
        except (OSError, ValueError, KeyError, PyJWTError) as error:
            _log.warning("cannot fetch the identity provider's keys", why=str(error)[:300])

    def _load(self) -> dict[str, PyJWK]:
        url = self._url or str(_json(f"{self._issuer.rstrip('/')}{_WELL_KNOWN}")["jwks_uri"])
        found = PyJWKSet.from_dict(_json(url))
        return {key.key_id: key for key in found.keys if key.key_id}


def check_url(url: str) -> str:
    """Return a URL that keys may come from. Raises ValueError: others could put in their own."""
    parts = urlsplit(url)
    if parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or "")):
        return url
    raise ValueError(f"{url!r}: an identity provider is asked by https, or by http on loopback")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Keys come from where the settings say and from nowhere else."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _json(url: str) -> dict[str, Any]:
    opener = urllib.request.build_opener(_NoRedirects)
    with opener.open(check_url(url), timeout=_FETCH_S) as answer:
        data = answer.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise ValueError(f"{url} answers with more than {_MOST_BYTES:,} bytes")
    found = json.loads(data)
    if not isinstance(found, dict):
        raise ValueError(f"{url} does not answer with a JSON object")
    return found
