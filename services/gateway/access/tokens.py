"""Tokens of an identity provider (OpenID Connect): signature, issuer, audience, time, grants."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import jwt
from jwt.exceptions import ExpiredSignatureError, PyJWTError
from stillhouse.gateway.v1 import access_pb2 as pb

from services.common.errors import CredentialsExpired, Unauthenticated
from services.gateway.access.grants import read_grants
from services.gateway.access.identity import Identity, Role
from services.gateway.access.key_set import KeySet
from services.gateway.settings import GatewaySettings

_LEEWAY_S = 30
_KEEP_S = 60.0
"""How long a token that was checked is taken as good; never beyond its own end."""
_MOST = 2_000
_MOST_CHARACTERS = 16_384
_REQUIRED = ["exp", "iss", "aud", "sub"]


class Tokens:
    """Checks tokens of one issuer. Use from one event loop."""

    def __init__(self, settings: GatewaySettings, keys: KeySet) -> None:
        self._settings, self._keys = settings, keys
        self._grants = {name: read_grants(given) for name, given in settings.oidc_grants.items()}
        self._known: OrderedDict[bytes, tuple[float, Identity]] = OrderedDict()

    @classmethod
    def of(cls, settings: GatewaySettings) -> Tokens | None:
        """Return what the settings ask for; None where they name no issuer."""
        if not settings.oidc_issuer:
            return None
        return cls(settings, KeySet(settings.oidc_issuer, settings.oidc_jwks_url))

    async def identify(self, token: str) -> Identity:
        """Return whom a token stands for. Raises Unauthenticated, PeerUnavailable."""
        if len(token) > _MOST_CHARACTERS:
            raise Unauthenticated("this token is too long")
        mark = hashlib.sha256(token.encode()).digest()
        known = self._known.get(mark)
        if known is not None and known[0] > time.time():
            return known[1]
        identity = self._identity(await self._claims(token))
        until = min(time.time() + _KEEP_S, (identity.expires or 0.0) + _LEEWAY_S)
        self._known[mark] = until, identity
        while len(self._known) > _MOST:
            self._known.popitem(last=False)
        return identity

    async def _claims(self, token: str) -> Mapping[str, Any]:
        try:
            header = jwt.get_unverified_header(token)
            # Before any key is looked for: what the token itself asks for decides nothing.
            if header.get("alg") not in self._settings.oidc_algorithms:
                raise Unauthenticated("this token is signed in a way that is not allowed here")
            key = await self._keys.get(str(header.get("kid", "")))
            if key is None:
                raise Unauthenticated("this token is signed by a key that its issuer has not")
            found: Mapping[str, Any] = jwt.decode(
                token,
                key,
                algorithms=list(self._settings.oidc_algorithms),
                audience=self._settings.oidc_audience,
                issuer=self._settings.oidc_issuer,
                leeway=_LEEWAY_S,
                options={"require": _REQUIRED},
            )
        except ExpiredSignatureError:
            raise CredentialsExpired("this token has expired; get a new one") from None
        except PyJWTError as error:
            raise Unauthenticated(f"this token is not valid: {str(error)[:200]}") from None
        return found

    def _identity(self, claims: Mapping[str, Any]) -> Identity:
        subject = str(claims["sub"])
        shown = str(claims.get("email") or claims.get("preferred_username") or subject)
        return Identity(
            f"users/{subject}"[:200],
            shown[:100],
            pb.CREDENTIAL_KIND_TOKEN,
            self._granted(claims.get(self._settings.oidc_claim)),
            float(claims["exp"]),
        )

    def _granted(self, value: Any) -> dict[str, Role]:
        """Return the roles that the values of the claim stand for."""
        values = value if isinstance(value, list) else [value]
        found: dict[str, Role] = {}
        for one in values:
            for project, role in self._grants.get(str(one), {}).items():
                found[project] = max(found.get(project, role), role)
        return found
