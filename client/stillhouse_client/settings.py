"""What the client takes from its environment; no other module of it reads the environment."""

from __future__ import annotations

import os
from pathlib import Path

from stillhouse_client.certificates import Certificates

ADDRESS = "STILLHOUSE_ADDRESS"
PROJECT = "STILLHOUSE_PROJECT"
DATA_DIR = "STILLHOUSE_DATA_DIR"
API_KEY = "STILLHOUSE_API_KEY"
CREDENTIALS = "STILLHOUSE_CREDENTIALS"
REDIS_URL = "GATEWAY_REDIS_URL"
DATABASE_URL = "GATEWAY_DATABASE_URL"
BLOB_URL = "GATEWAY_BLOB_URL"
TLS = "STILLHOUSE_TLS"
_REPLICATED = ("teacher", "concepts")


def default_data_dir() -> Path:
    """Return the data folder of a suite on this machine."""
    return Path(os.environ.get(DATA_DIR, ".stillhouse"))


def certificates() -> Certificates | None:
    """Return what the environment says is shown to a gateway (`STILLHOUSE_TLS_CERT`, `..._KEY`,
    `..._CA`, `..._NAME`); None where it says nothing."""
    cert, key, ca, name = (
        os.environ.get(f"{TLS}_{one}", "") for one in ("CERT", "KEY", "CA", "NAME")
    )
    if not (cert or ca):
        return None
    shown, secret, trusted = (Path(one) if one else None for one in (cert, key, ca))
    return Certificates(shown, secret, trusted, name)


def api_key() -> str:
    """Return the API key of the environment; empty where it has none."""
    return os.environ.get(API_KEY, "")


def credentials_file() -> Path:
    """Return the file in which `stillhouse login` keeps keys."""
    folder = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return Path(os.environ.get(CREDENTIALS) or folder / "stillhouse" / "credentials.json")


def redis_url() -> str:
    """Return the Redis a suite should use; empty where it should start its own."""
    return os.environ.get(REDIS_URL, "")


def database_url() -> str:
    """Return the database a suite should use; empty where it should use a file of its own."""
    return os.environ.get(DATABASE_URL, "")


def blob_url() -> str:
    """Return the gateway's blob store; empty where the environment names none."""
    return os.environ.get(BLOB_URL, "")


def processes() -> dict[str, int]:
    """Return how many processes of a service a suite should run, by service."""
    named = {service: os.environ.get(f"{service.upper()}_PROCESSES", "") for service in _REPLICATED}
    return {service: int(text) for service, text in named.items() if text.isdigit()}


def of_one_process(prefix: str, place: int) -> dict[str, str]:
    """Return what differs between the processes of one service: on `cuda` each has the GPU of its
    place, and a metrics page has a port of its own."""
    found = {}
    if os.environ.get(f"{prefix}_DEVICE") == "cuda":
        found[f"{prefix}_DEVICE"] = f"cuda:{place}"
    port = os.environ.get(f"{prefix}_METRICS_PORT", "0")
    if port.isdigit() and int(port):
        found[f"{prefix}_METRICS_PORT"] = str(int(port) + place)
    return found


def child_environment(extra: dict[str, str]) -> dict[str, str]:
    """Return this process's environment with `extra` added, for a service that it starts."""
    return {**os.environ, **extra}
