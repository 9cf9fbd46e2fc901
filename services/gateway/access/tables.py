"""Tables of keys, sessions, quotas, secrets of the gateways, and the audit log."""

from __future__ import annotations

import secrets
import time

from sqlalchemy import BigInteger, Double, Integer, LargeBinary, String, Text, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from services.gateway.store import Base, Store

_PK = BigInteger().with_variant(Integer, "sqlite")
_SECRET_BYTES = 32


class ApiKeyRow(Base):
    """An API key; `digest` is the SHA-256 of what its holder sends. `project` may be `*`."""

    __tablename__ = "api_keys"

    pk: Mapped[int] = mapped_column(_PK, primary_key=True)
    key_id: Mapped[str] = mapped_column(String(32), unique=True)
    project: Mapped[str] = mapped_column(String(63), index=True)
    role: Mapped[int]
    display_name: Mapped[str] = mapped_column(String(100), default="")
    digest: Mapped[bytes] = mapped_column(LargeBinary)
    creator: Mapped[str] = mapped_column(Text)
    created: Mapped[float] = mapped_column(Double, default=time.time)
    expires: Mapped[float] = mapped_column(Double)
    revoked: Mapped[float | None] = mapped_column(Double, default=None)
    last_used: Mapped[float | None] = mapped_column(Double, default=None)


class SessionRow(Base):
    """A browser's session. One of a key ends with the key; one of a token holds its grants."""

    __tablename__ = "access_sessions"

    session_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    digest: Mapped[bytes] = mapped_column(LargeBinary)
    key_id: Mapped[str] = mapped_column(String(32), index=True)
    """Empty for a session of a token."""
    subject: Mapped[str] = mapped_column(Text)
    display_name: Mapped[str] = mapped_column(Text)
    grants_json: Mapped[str] = mapped_column(Text)
    created: Mapped[float] = mapped_column(Double, default=time.time)
    expires: Mapped[float] = mapped_column(Double, index=True)


class AuditRow(Base):
    """What was done or refused; rows are added and never changed or removed."""

    __tablename__ = "audit_entries"

    pk: Mapped[int] = mapped_column(_PK, primary_key=True)
    time: Mapped[float] = mapped_column(Double)
    project: Mapped[str] = mapped_column(String(63), index=True)
    subject: Mapped[str] = mapped_column(Text)
    display_name: Mapped[str] = mapped_column(Text)
    method: Mapped[str] = mapped_column(String(200))
    resource: Mapped[str] = mapped_column(Text)
    code: Mapped[str] = mapped_column(String(32))
    message: Mapped[str] = mapped_column(Text)
    request_id: Mapped[str] = mapped_column(String(64))
    peer: Mapped[str] = mapped_column(Text)


class QuotaRow(Base):
    """Limits of a project's own; what is NULL is the gateway's."""

    __tablename__ = "quotas"

    project: Mapped[str] = mapped_column(String(63), primary_key=True)
    calls_per_second: Mapped[float | None] = mapped_column(Double, default=None)
    unfinished_jobs: Mapped[int | None] = mapped_column(default=None)
    stored_bytes: Mapped[int | None] = mapped_column(BigInteger, default=None)


class SecretRow(Base):
    """A secret that all gateways on this database share."""

    __tablename__ = "gateway_secrets"

    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    value: Mapped[bytes] = mapped_column(LargeBinary)


def shared_secret(store: Store, name: str) -> bytes:
    """Return the secret of that name, made by whoever asks first. Blocking."""

    def work(session: Session) -> bytes:
        found = session.scalar(select(SecretRow.value).where(SecretRow.name == name))
        if found is None:
            found = secrets.token_bytes(_SECRET_BYTES)
            session.add(SecretRow(name=name, value=found))
            session.flush()
        return found

    return store.change(work)
