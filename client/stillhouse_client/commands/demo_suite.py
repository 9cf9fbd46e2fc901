"""What the demos share: a suite to run on, and a live display of the job that runs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from stillhouse.gateway.v1 import jobs_pb2

from stillhouse_client.client import AsyncClient
from stillhouse_client.commands import output
from stillhouse_client.commands.session import EXIT_INTERRUPTED, DataDir, Json, Project, shown_to
from stillhouse_client.commands.suite import DatabaseUrl, RedisUrl, make_config
from stillhouse_client.commands.watching import JobBars
from stillhouse_client.demo_steps import Say, ShowJob
from stillhouse_client.names import DEFAULT_PROJECT
from stillhouse_client.suite import state
from stillhouse_client.suite.config import SuiteConfig
from stillhouse_client.suite.supervisor import Suite

T = TypeVar("T")
Summary = dict[str, Any]
Tell = Callable[[AsyncClient, Say, ShowJob, float], Awaitable[Summary]]
"""Runs a demo's story that began at a monotonic time, and returns its summary."""


@dataclass(frozen=True)
class DemoFlags:
    """Where the demo runs."""

    fresh: Annotated[bool, typer.Option("--fresh", help="Run anew, under new names.")] = False
    data_dir: DataDir = Path(".stillhouse")
    port: Annotated[int, typer.Option(min=-1, help="First port of the suite; -1: any.")] = -1
    redis_url: RedisUrl = ""
    database_url: DatabaseUrl = ""
    project: Project = DEFAULT_PROJECT
    as_json: Json = False

    @property
    def tag(self) -> str:
        """Part of all names of a run: another one for every fresh run."""
        return f"r{int(time.time())}" if self.fresh else ""


def show_story(
    flags: DemoFlags, tell: Tell, show: Callable[[Summary], None], *, name: str, title: str
) -> None:
    """Run a story of models that jobs train, print its summary, and write it as `name`.json with
    pictures of its report under `title`."""
    summary, files = finish(_told(flags, tell, name, title), fresh=flags.fresh)
    if flags.as_json:
        output.print_json(summary)
        return
    show(summary)
    output.say(f"\n{output.seconds(summary['wall_s'])} in all. Written:")
    for file in files:
        output.say(f"  {file}")


async def _told(flags: DemoFlags, tell: Tell, name: str, title: str) -> tuple[Summary, list[Path]]:
    started_s = time.monotonic()
    config = make_config(flags.data_dir, max(flags.port, 0), flags.redis_url, flags.database_url)
    config = replace(config, services=("teacher", "student", "gateway"))
    async with (
        gateway(config) as address,
        AsyncClient(
            address, project=flags.project, certificates=shown_to(config.data_dir)
        ) as client,
    ):
        with showing() as (say, show):
            summary = await tell(client, say, show, started_s)
    folder = config.data_dir / "demo"
    return summary, await asyncio.to_thread(write, summary, folder, name, title)


def write(summary: Summary, folder: Path, name: str, title: str) -> list[Path]:
    """Write a summary as JSON, and its `report` as a page; return the files."""
    from stillhouse_client.report import job_page  # matplotlib is slow to import

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(summary, indent=2))
    return [path, *job_page.write(summary["report"], title, folder / name)]


def finish(work: Coroutine[Any, Any, T], *, fresh: bool = False) -> T:
    """Run a demo to its end. After Ctrl-C, say how to go on, and exit."""
    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        kept = "interrupted; nothing is lost: the same command goes on from here"
        output.note("interrupted" if fresh else kept)
        raise typer.Exit(EXIT_INTERRUPTED) from None


@contextlib.asynccontextmanager
async def gateway(config: SuiteConfig) -> AsyncIterator[str]:
    """Yield the address of the suite in the data folder, or of one that runs meanwhile."""
    running = state.read(config.data_dir)
    if running is not None:
        output.note(f"using the suite that runs in {config.data_dir}")
        yield running.gateway
        return
    output.note(f"starting Redis, {', '.join(config.services)}")
    async with Suite(config, output.note) as suite:
        yield suite.address


@contextlib.contextmanager
def showing() -> Iterator[tuple[Say, ShowJob]]:
    """Yield (say, show): a headline, and bars of the stages of whatever job is shown."""
    bars: JobBars | None = None
    shown = ""

    def close() -> None:
        nonlocal bars
        if bars is not None:
            bars.__exit__()
            bars = None

    def show(job: jobs_pb2.DistillationJob) -> None:
        nonlocal bars, shown
        if bars is None or job.name != shown:
            close()
            bars, shown = JobBars().__enter__(), job.name
        bars.show(job)

    def say(text: str) -> None:
        close()
        output.err.print(f"[bold]{text}[/bold]", soft_wrap=True)

    try:
        yield say, show
    finally:
        close()
