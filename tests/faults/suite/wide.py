"""A world for rarer faults: two gateways share the database, the clock of one can jump, blobs and
runs lie on a small disk, and the concepts service lives in a network of its own.

What the machine does not allow (mounting, network namespaces) is left out, and `missing` says so.
The clock is Python's `time.time`: libfaketime breaks the monotonic sleeps of Python 3.11.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.suite import processes
from tests.faults.suite.faults import Fault
from tests.faults.suite.watch import Database
from tests.faults.suite.world import World
from tests.support import free_port

SECOND = "second"
_EXECUTORS = {"gateway-0": "gateway", "gateway-1": SECOND}
_DISK_MIB = 256
_FULL_S = 5.0
_PARTED_S = 10.0
_STILL_S = 12.0
"""Long enough that the other gateway takes a gateway's jobs: twice its six beats of a second."""
_GATEWAY = """
import runpy, time
import services.gateway.jobs.engine as engine
true_s, clock, version = time.time, {clock!r}, {version!r}
def jumping():
    with open(clock) as file:
        return true_s() + float(file.read() or 0)
if clock:
    time.time = jumping
if version:
    engine.VERSION = version
runpy.run_module('services.gateway', run_name='__main__', alter_sys=True)
"""
"""A gateway whose clock may jump, and which may be of another version."""


@dataclass
class Wide(World):
    """The world, and what can be done to it; each deed takes what `inject` gives."""

    missing: list[str] = field(default_factory=list)
    away: set[str] = field(default_factory=set)
    version: str = ""
    namespace: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.ports[SECOND] = free_port()

    @property
    def address(self) -> str:
        ports = (self.proxies[one].port for one in ("gateway", SECOND))
        return "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)

    @property
    def services(self) -> tuple[str, ...]:
        return (*super().services, SECOND)

    @property
    def disk(self) -> Path:
        return self.folder / "disk"

    @property
    def blobs(self) -> Path:
        return self.disk / "blobs"

    def host(self, service: str) -> str:
        return "10.97.0.2" if service == "concepts" and self.namespace else "127.0.0.1"

    def command(self, service: str) -> list[str]:
        if service in ("gateway", SECOND):
            clock = str(self.folder / "clock") if service == "gateway" else ""
            return [sys.executable, "-c", _GATEWAY.format(clock=clock, version=self.version)]
        found = super().command(service)
        if service == "concepts" and self.namespace:
            return ["ip", "netns", "exec", self.namespace, *found]
        return found

    def environment(self, service: str) -> dict[str, str]:
        if service != SECOND:
            found = super().environment(service)
        else:
            more = {"GATEWAY_PORT": str(self.ports[SECOND]), "GATEWAY_EXECUTOR_ID": "gateway-1"}
            found = super().environment("gateway") | more
        if service == "student":
            found["STUDENT_RUNS_DIR"] = str(self.disk / "runs")
        return found

    async def start_all(self) -> None:
        self.disk.mkdir(parents=True)
        (self.folder / "clock").write_text("0")
        size = f"size={_DISK_MIB}m"
        if not await _did("mount", "-t", "tmpfs", "-o", size, "tmpfs", str(self.disk)):
            self.missing.append("disk: mounting is not allowed")
        await self._part_network()
        await super().start_all()

    async def start(self, service: str) -> None:
        self.away.discard(service)
        await super().start(service)
        if service == "concepts" and self.namespace and "passer" not in self.running:
            port = self.ports["concepts"]
            command = ["ip", "netns", "exec", self.namespace, sys.executable, "-m"]
            command += ["tests.faults.suite.proxy", f"10.97.0.2:{port}", f"127.0.0.1:{port}"]
            self.running["passer"] = await processes.spawn(
                command, self.log("passer"), {processes.MARK: self.mark}
            )

    async def stop(self) -> None:
        await super().stop()
        if self.namespace:
            await _did("ip", "netns", "del", self.namespace)
            await _did("ip", "link", "del", "sh-faults0")
        await _did("umount", "-l", str(self.disk))

    async def revive(self) -> None:
        for service in list(self.away):
            await self.start(service)

    async def lost(self, world: World, fault: Fault, rng: random.Random) -> None:
        """kill -9 of the gateway that runs the job; it stays away until the job has ended."""
        service = await self._runner()
        await self.kill(service)
        self.away.add(service)

    async def fenced(self, world: World, fault: Fault, rng: random.Random) -> None:
        """The gateway that runs the job stands still until the other one has taken the job over,
        and then goes on with what it was doing."""
        service = await self._runner()
        found = processes.family(self.running[service].pid)
        processes.signal_all(found, signal.SIGSTOP)
        try:
            await asyncio.sleep(_STILL_S)
        finally:
            processes.signal_all(found, signal.SIGCONT)
        with contextlib.suppress(TimeoutError):  # the other one may have ended the job already
            if await self._runner(timeout_s=1) == service:
                raise RuntimeError(f"nobody took the job of {service} over")

    async def upgrade(self, world: World, fault: Fault, rng: random.Random) -> None:
        """Both gateways leave in good order and come back as another version, one by one."""
        self.version = "" if self.version else "jobs-next"
        for service in ("gateway", SECOND):
            await self.terminate(service)
            await self.start(service)
            await self.ready(service)

    async def roll(self, world: World, fault: Fault, rng: random.Random) -> None:
        """Start every service anew, one after another."""
        for service in ("teacher", "concepts", "student", "gateway", SECOND):
            await self.terminate(service)
            await self.start(service)
            await self.ready(service)

    async def part(self, world: World, fault: Fault, rng: random.Random) -> None:
        """Take the link to the concepts service's network down."""
        if not self.namespace:
            self.proxies["concepts"].swallow()
            await asyncio.sleep(_PARTED_S)
            self.proxies["concepts"].heal()
            return
        await _did("ip", "link", "set", "sh-faults0", "down")
        try:
            await asyncio.sleep(_PARTED_S)
        finally:
            await _did("ip", "link", "set", "sh-faults0", "up")

    async def jump(self, world: World, fault: Fault, rng: random.Random) -> None:
        """Let the first gateway's clock jump an hour ahead, two hours back, and right again."""
        for offset in ("3600", "-3600", "0"):
            (self.folder / "clock").write_text(offset)
            await asyncio.sleep(3)

    async def full(self, world: World, fault: Fault, rng: random.Random) -> None:
        """Fill the disk to its last byte for a while."""
        filler = self.disk / "filler"
        await asyncio.to_thread(_fill, filler)
        try:
            await asyncio.sleep(_FULL_S)
        finally:
            filler.unlink()

    async def _runner(self, *, timeout_s: float = 30) -> str:
        """The gateway that runs a job just now."""
        db = Database(self.postgres.dsn)
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    rows = await db.rows(
                        "SELECT executor_id FROM dbos.workflow_status WHERE status = 'PENDING'"
                        " AND name = 'job'"
                    )
                    if rows:
                        return _EXECUTORS[rows[0][0]]
                    await asyncio.sleep(0.05)
        finally:
            await db.close()

    async def _part_network(self) -> None:
        """Make a network for the concepts service, with one link to ours."""
        name = f"sh-faults-{os.getpid()}"
        there = ("ip", "-n", name)
        done = [
            await _did("ip", "netns", "add", name),
            await _did("ip", "link", "add", "sh-faults0", "type", "veth", "peer", "sh-faults1"),
            await _did("ip", "link", "set", "sh-faults1", "netns", name),
            await _did("ip", "addr", "add", "10.97.0.1/30", "dev", "sh-faults0"),
            await _did("ip", "link", "set", "sh-faults0", "up"),
            await _did(*there, "addr", "add", "10.97.0.2/30", "dev", "sh-faults1"),
            await _did(*there, "link", "set", "sh-faults1", "up"),
            await _did(*there, "link", "set", "lo", "up"),
        ]
        if all(done):
            self.namespace = name
        else:
            self.missing.append("network: no namespaces here; the proxy swallows instead")


def _fill(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as out:
        for _ in range(_DISK_MIB * 16):
            out.write(bytes(1 << 16))


async def _did(*command: str) -> bool:
    """Run a command; return whether it could."""
    try:
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=False)
    except OSError:
        return False
    return done.returncode == 0


@asynccontextmanager
async def wide_world(folder: Path, catalogue: Path) -> AsyncIterator[Wide]:
    """Run a wide world in `folder` until the block ends."""
    made = Wide(folder, catalogue)
    try:
        await made.start_all()
        yield made
    finally:
        await made.stop()
