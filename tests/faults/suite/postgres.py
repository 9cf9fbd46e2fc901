"""A PostgreSQL server of its own: pgserver's programs, on a port of 127.0.0.1."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from pathlib import Path

import psycopg
from pgserver._commands import POSTGRES_BIN_PATH

from tests.faults.suite import processes

_USER = "pgserver"
_READY_S = 90.0


class Postgres:
    """One server and its folder. Root may not run it, so it gets a user of its own there."""

    def __init__(self, folder: Path, port: int, mark: str) -> None:
        self.folder, self.port, self._mark = folder, port, mark
        self._user = _USER if os.geteuid() == 0 else None
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def dsn(self) -> str:
        """Where it is, past every proxy."""
        return f"host=127.0.0.1 port={self.port} user=postgres dbname=postgres connect_timeout=5"

    async def start(self) -> None:
        """Start it (again) and return once it answers."""
        if not (self.folder / "PG_VERSION").exists():
            await asyncio.to_thread(self._make)
        command = [str(POSTGRES_BIN_PATH / "postgres"), "-D", str(self.folder)]
        command += ["-h", "127.0.0.1", "-p", str(self.port), "-k", ""]
        environment = {processes.MARK: self._mark}
        log = self.folder.with_suffix(".log")
        self.process = await processes.spawn(command, log, environment, user=self._user)
        await self.ready()

    async def ready(self) -> None:
        """Wait until it answers. Raises TimeoutError."""
        async with asyncio.timeout(_READY_S):
            while True:
                try:
                    with await asyncio.to_thread(psycopg.connect, self.dsn, autocommit=True) as one:
                        one.execute("SELECT 1")
                    return
                except psycopg.OperationalError:
                    await asyncio.sleep(0.1)

    async def kill(self) -> None:
        """kill -9 of it and of every process that serves a connection."""
        assert self.process is not None
        processes.signal_all(processes.family(self.process.pid), signal.SIGKILL)
        await processes.gone(self.process, timeout_s=30)

    async def terminate(self) -> None:
        """SIGINT: it ends its connections and leaves in good order. On SIGTERM it would wait until
        its clients leave, which those that share a pool never do."""
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        if not await processes.gone(self.process, timeout_s=60):
            await self.kill()

    def _make(self) -> None:
        if self._user is not None:
            from pgserver.utils import (
                ensure_folder_permissions,
                ensure_prefix_permissions,
                ensure_user_exists,
            )

            ensure_user_exists(self._user)
            self.folder.mkdir(parents=True)
            ensure_prefix_permissions(self.folder)
            ensure_prefix_permissions(POSTGRES_BIN_PATH)
            for part in ("bin", "lib"):
                ensure_folder_permissions(POSTGRES_BIN_PATH.parent / part, 0o055)
            shutil.chown(self.folder, self._user, self._user)
        command = [str(POSTGRES_BIN_PATH / "initdb"), "-D", str(self.folder), "-U", "postgres"]
        command += ["--auth=trust", "--encoding=utf8"]
        subprocess.run(command, check=True, capture_output=True, user=self._user)
