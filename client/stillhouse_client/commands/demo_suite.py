"""What the demos share: a suite to run on, and a live display of the job that runs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, TypeVar

import typer
from stillhouse.gateway.v1 import jobs_pb2

from stillhouse_client.commands import output
from stillhouse_client.commands.session import EXIT_INTERRUPTED
from stillhouse_client.commands.watching import JobBars
from stillhouse_client.demo_steps import Say, ShowJob
from stillhouse_client.suite import state
from stillhouse_client.suite.config import SuiteConfig
from stillhouse_client.suite.supervisor import Suite

T = TypeVar("T")


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
