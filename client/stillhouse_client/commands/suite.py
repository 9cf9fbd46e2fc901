"""`stillhouse up`, `down` and `status`: a suite on this machine."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from stillhouse_client import settings
from stillhouse_client.certificates import Certificates, in_folder
from stillhouse_client.commands import output
from stillhouse_client.commands.session import EXIT_FAILED, DataDir, Json
from stillhouse_client.errors import ClientError, Conflict, ServerAway
from stillhouse_client.suite import health, state
from stillhouse_client.suite.config import DEFAULT_PORT, MAX_PORT, MAX_PROCESSES, SuiteConfig
from stillhouse_client.suite.supervisor import REDIS, Suite

Port = Annotated[
    int,
    typer.Option(
        "--port",
        min=0,
        max=MAX_PORT,
        help="The gateway's; the services take the next three, the workbench 80 more. 0: any.",
    ),
]
RedisUrl = Annotated[
    str, typer.Option("--redis-url", help="Redis to use; without it, one is started.")
]
DatabaseUrl = Annotated[
    str, typer.Option("--database-url", help="PostgreSQL to use; without it, a SQLite file.")
]
TeacherProcesses = Annotated[
    int,
    typer.Option(
        min=0,
        max=MAX_PROCESSES,
        help="Of the teacher service; on cuda each has a GPU. 0: TEACHER_PROCESSES, or 1.",
    ),
]
ConceptsProcesses = Annotated[
    int,
    typer.Option(
        min=0,
        max=MAX_PROCESSES,
        help="Of the concepts service; on cuda each has a GPU. 0: CONCEPTS_PROCESSES, or 1.",
    ),
]
Certs = Annotated[
    Path | None,
    typer.Option(
        "--certs", help="Folder of `stillhouse certs`: speak mutual TLS, and HTTPS to browsers."
    ),
]
_DOWN_S = 60.0


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command()(up)
    app.command()(down)
    app.command()(status)


def up(
    data_dir: DataDir = Path(".stillhouse"),
    port: Port = DEFAULT_PORT,
    redis_url: RedisUrl = "",
    database_url: DatabaseUrl = "",
    teacher_processes: TeacherProcesses = 0,
    concepts_processes: ConceptsProcesses = 0,
    certs: Certs = None,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Go on in background.")] = False,
    as_json: Json = False,
) -> None:
    """Start Redis and the four services and keep them running until Ctrl-C."""
    config = make_config(data_dir, port, redis_url, database_url)
    given = {"teacher": teacher_processes, "concepts": concepts_processes}
    asked = config.processes | {service: count for service, count in given.items() if count}
    config = replace(config, processes=asked, certs=certs)
    if detach:
        _up_detached(config)
        status(data_dir, as_json)
        return
    asyncio.run(_up(config, as_json=as_json))


def down(data_dir: DataDir = Path(".stillhouse"), as_json: Json = False) -> None:
    """Stop the suite of a data folder; calls that run get time to finish."""
    running = state.read(data_dir)
    if running is not None:
        os.kill(running.pid, signal.SIGTERM)
        until_s = time.monotonic() + _DOWN_S
        while state.is_locked(data_dir):
            if time.monotonic() > until_s:
                raise ClientError(f"process {running.pid} does not end", hint="kill it by its id")
            time.sleep(0.1)
    if as_json:
        output.print_json({"stopped": running is not None})
    else:
        output.say("stopped" if running else f"no suite is running in {data_dir}")


def status(data_dir: DataDir = Path(".stillhouse"), as_json: Json = False) -> None:
    """Say what runs in a data folder and whether it serves."""
    running = state.read(data_dir)
    rows = asyncio.run(_health(running.members, running.certificates)) if running else []
    if as_json:
        web = {"web": running.web} if running else {}
        output.print_json({"running": running is not None, "services": rows, **web})
    elif running is None:
        output.say(f"no suite is running in {data_dir}; start one with `stillhouse up`")
    else:
        print_members(rows)
        output.say(f"workbench: {running.web}")
    if running is None or any(row["state"] != "serving" for row in rows):
        raise typer.Exit(EXIT_FAILED)


def make_config(data_dir: Path, port: int, redis_url: str, database_url: str) -> SuiteConfig:
    """Return the suite that flags and environment ask for."""
    return SuiteConfig(
        data_dir=data_dir,
        port=port,
        redis_url=redis_url or settings.redis_url(),
        database_url=database_url or settings.database_url(),
        processes={
            service: min(max(count, 1), MAX_PROCESSES)
            for service, count in settings.processes().items()
        },
    )


def print_members(rows: list[dict[str, Any]]) -> None:
    """Print the processes of a suite."""
    output.table(
        ["process", "state", "address", "#pid", "log"],
        [(r["name"], r["state"], r["address"], str(r["pid"]), r["log"]) for r in rows],
    )


async def _up(config: SuiteConfig, *, as_json: bool) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    output.note("starting Redis and the four services; the first start fetches weights")
    suite, certs = Suite(config, output.note), config.certs
    stop = asyncio.create_task(stopping.wait())
    start = asyncio.create_task(suite.start())
    first: set[asyncio.Future[Any]] = {start, stop}
    await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
    try:
        if not start.done():
            return
        start.result()
        rows = await _health(suite.members, in_folder(certs) if certs else None)
        if as_json:
            output.print_json({"running": True, "services": rows, "web": suite.web_url})
        else:
            print_members(rows)
            output.say(f"ready: gateway at {suite.address}. Ctrl-C stops everything.")
            output.say(f"workbench: {suite.web_url}")
        ends: set[asyncio.Future[Any]] = {stop, suite.failed}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if suite.failed.done():
            raise ClientError(suite.failed.result(), hint="see the log for the cause")
    finally:
        start.cancel()
        stop.cancel()
        await asyncio.gather(start, stop, return_exceptions=True)
        if suite.members:
            output.note("stopping")
        await suite.stop()


def _up_detached(config: SuiteConfig) -> None:
    if state.is_locked(config.data_dir):
        raise Conflict(f"a suite is already running in {config.data_dir}", hint=_SEE)
    log = config.path("logs", "suite.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "stillhouse_client", "up"]
    command += ["--data-dir", str(config.data_dir), "--port", str(config.port)]
    command += ["--redis-url", config.redis_url] if config.redis_url else []
    command += ["--database-url", config.database_url] if config.database_url else []
    command += ["--certs", str(config.certs)] if config.certs else []
    for service, count in config.processes.items():
        command += [f"--{service}-processes", str(count)]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )
    with output.err.status("starting Redis and the four services"):
        _wait_detached(process, config, log)


def _wait_detached(process: subprocess.Popen[bytes], config: SuiteConfig, log: Path) -> None:
    until_s = time.monotonic() + config.start_timeout_s
    while time.monotonic() < until_s:
        if process.poll() is not None:
            said = log.read_text(errors="replace").rsplit("error:", 1)[-1].strip()
            raise ClientError(said[-2000:], hint=f"see {log}")
        running = state.read(config.data_dir)
        rows = asyncio.run(_health(running.members, running.certificates)) if running else []
        if rows and all(row["state"] == "serving" for row in rows):
            return
        time.sleep(0.3)
    raise ServerAway(f"not serving after {config.start_timeout_s:.0f} s", hint=f"see {log}")


async def _health(
    members: list[state.Member], certificates: Certificates | None
) -> list[dict[str, Any]]:
    return [
        {
            "name": member.name,
            "state": await _state_of(member, certificates),
            "address": member.address,
            "pid": member.pid,
            "log": member.log,
        }
        for member in members
    ]


async def _state_of(member: state.Member, certificates: Certificates | None) -> str:
    if not state.is_alive(member.pid):
        return "down"
    if member.name == REDIS:
        return "serving"
    return "serving" if await health.is_serving(member.address, certificates) else "not serving"


_SEE = "see `stillhouse status`; stop it with `stillhouse down`"
