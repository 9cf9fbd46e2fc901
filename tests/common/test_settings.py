"""Settings as they may be shown."""

from __future__ import annotations

import pytest

from services.gateway.settings import GatewaySettings


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql+psycopg://me:p%40ss/w@db:5432/x", "postgresql+psycopg://me:***@db:5432/x"),
        ("redis://:secret@cache:6379/0", "redis://:***@cache:6379/0"),
        ("sqlite:////var/lib/gateway.db", "sqlite:////var/lib/gateway.db"),
        ("redis://cache:6379/0", "redis://cache:6379/0"),
    ],
)
def test_passwords_in_urls_are_not_shown(url: str, shown: str) -> None:
    assert GatewaySettings(database_url=url).shown()["database_url"] == shown
    assert GatewaySettings(redis_url=url).shown()["redis_url"] == shown
