"""Starts a suite, keeps it running and stops it in order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from stillhouse_client import settings
from stillhouse_client.certificates import in_folder
from stillhouse_client.errors import ClientError, Conflict
from stillhouse_client.suite import config as configs
from stillhouse_client.suite import health, process, state
from stillhouse_client.suite.config import SuiteConfig

Report = Callable[[str], None]
_DRAIN_S = 25.0
_STABLE_S = 30.0
_MOST_CRASHES = 5
REDIS = "redis"


class Suite:
    """The processes of one data folder. Use it as `async with Suite(config) as suite:`.

    Entering returns once every service reports SERVING; a process that ends is started again, with
    growing pauses. Raises Conflict where the folder or a port is taken, ClientError where a
    service does not come up.
    """

    def __init__(self, config: SuiteConfig, report: Report = lambda text: None) -> None:
        self._config = config
        self._report = report
        self._lock = state.Lock(config.data_dir)
        self._children: dict[str, process.Child] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._ports: dict[str, int] = {}
        self._redis_url = config.redis_url
        self.failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Set, with the reason, once a process has crashed too often to go on."""

    @property
    def address(self) -> str:
        """Return the gateway's address."""
        return f"{configs.HOST}:{self._ports['gateway']}"

    @property
    def web_url(self) -> str:
        """Return the address of the workbench."""
        return configs.web_url(self._ports, certs=self._config.certs)

    @property
    def members(self) -> list[state.Member]:
        """Return the suite's processes."""
        return [
            state.Member(name, child.pid, self._address_of(name), str(child.log))
            for name, child in self._children.items()
        ]

    async def __aenter__(self) -> Suite:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def start(self) -> None:
        """Start everything and return once all serve; `stop` must follow, also on an error."""
        if not self._lock.acquire():
            raise Conflict(
                f"a suite is already running in {self._config.data_dir}",
                hint="see `stillhouse status`; stop it with `stillhouse down`",
            )
        await self._start()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def _start(self) -> None:
        self._ports = configs.choose_ports(self._config.port, self._config.processes)
        await self._start_redis()
        for name in self._config.members():
            await self._launch(name)
        self._keepers = [asyncio.create_task(self._keep(name)) for name in self._children]
        self._write_state()
        await self._until_serving()

    async def _start_redis(self) -> None:
        if self._redis_url:
            return
        executable = configs.redis_executable()
        if executable is None:
            self._report("no redis-server found: running without the embedding cache")
            return
        self._redis_url = f"unix://{configs.redis_socket(self._config)}"
        await self._launch(REDIS)

    async def _launch(self, name: str) -> None:
        env = settings.child_environment({})
        if name == REDIS:
            path = configs.redis_socket(self._config)
            command = configs.redis_command(
                configs.redis_executable() or "redis-server", path, self._config.path()
            )
        else:
            command = [sys.executable, "-m", f"services.{configs.service_of(name)}"]
            env |= configs.environment(self._config, name, self._ports, self._redis_url)
        log = self._config.path("logs", f"{name}.log")
        self._children[name] = await process.start(name, command, env, log)

    async def _keep(self, name: str) -> None:
        """Start the process again whenever it ends, until it crashed too often in a row."""
        crashes, pause_s = 0, 0.3
        while True:
            started_s = time.monotonic()
            child = self._children[name]
            code = await child.wait()
            if time.monotonic() - started_s > _STABLE_S:
                crashes, pause_s = 0, 0.3
            crashes += 1
            if crashes > _MOST_CRASHES:
                self._give_up(child, code)
                return
            self._report(f"{name} ended with code {code}; starting it again. Its last words:")
            self._report(f"{child.tail(3)}\n(all of them: {child.log})")
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, 10.0)
            await self._launch(name)
            self._write_state()

    def _give_up(self, child: process.Child, code: int) -> None:
        reason = f"{child.name} keeps ending with code {code}. The end of {child.log}:\n"
        if not self.failed.done():
            self.failed.set_result(reason + child.tail())

    async def _until_serving(self) -> None:
        certs = self._config.certs
        services = {name: self._address_of(name) for name in self._config.members()}
        serving = asyncio.create_task(
            health.wait_serving(
                services,
                timeout_s=self._config.start_timeout_s,
                certificates=in_folder(certs) if certs else None,
            )
        )
        waiting: set[asyncio.Future[Any]] = {serving, self.failed}
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if self.failed.done():
            serving.cancel()
            raise ClientError(self.failed.result(), hint="see the log for the cause")
        missing = serving.result()
        if missing:
            tails = "\n".join(f"{m}:\n{self._children[m].tail(5)}" for m in missing)
            raise ClientError(
                f"not serving after {self._config.start_timeout_s:.0f} s: "
                f"{', '.join(missing)}\n{tails}"
            )

    async def stop(self) -> None:
        """Stop in order: the gateway drains while what it calls is still there, Redis last."""
        for keeper in self._keepers:
            keeper.cancel()
        for keeper in self._keepers:
            with contextlib.suppress(asyncio.CancelledError):
                await keeper
        if gateway := self._children.get("gateway"):
            await gateway.stop(_DRAIN_S)
        others = [c for n, c in self._children.items() if n not in ("gateway", REDIS)]
        await asyncio.gather(*(child.stop(_DRAIN_S) for child in others))
        if redis := self._children.get(REDIS):
            await redis.stop(5.0)
        if self._lock.held:
            state.remove(self._config.data_dir)
        self._lock.release()

    def _write_state(self) -> None:
        certs = str(self._config.certs.resolve()) if self._config.certs else ""
        now = state.State(os.getpid(), self.address, self.members, self.web_url, certs)
        state.write(self._config.data_dir, now)

    def _address_of(self, name: str) -> str:
        return self._redis_url if name == REDIS else f"{configs.HOST}:{self._ports[name]}"
