"""What the client takes from its environment; no other module of it reads the environment."""

from __future__ import annotations

import os
from pathlib import Path

ADDRESS = "STILLHOUSE_ADDRESS"
PROJECT = "STILLHOUSE_PROJECT"
DATA_DIR = "STILLHOUSE_DATA_DIR"
REDIS_URL = "GATEWAY_REDIS_URL"
DATABASE_URL = "GATEWAY_DATABASE_URL"


def default_data_dir() -> Path:
    """Return the data folder of a suite on this machine."""
    return Path(os.environ.get(DATA_DIR, ".stillhouse"))


def redis_url() -> str:
    """Return the Redis a suite should use; empty where it should start its own."""
    return os.environ.get(REDIS_URL, "")


def database_url() -> str:
    """Return the database a suite should use; empty where it should use a file of its own."""
    return os.environ.get(DATABASE_URL, "")


def child_environment(extra: dict[str, str]) -> dict[str, str]:
    """Return this process's environment with `extra` added, for a service that it starts."""
    return {**os.environ, **extra}
