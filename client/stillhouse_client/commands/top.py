"""`stillhouse top`: what every service does now, in the terminal."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text
from stillhouse.common.v1 import info_pb2
from stillhouse.gateway.v1 import jobs_pb2

from stillhouse_client import names
from stillhouse_client.client import AsyncClient
from stillhouse_client.commands import output, top_tables
from stillhouse_client.commands.session import Address, Json, Project, run
from stillhouse_client.errors import ClientError
from stillhouse_client.jobs import FINAL
from stillhouse_client.rates import Rates, rates

_MOST_JOBS = 20

Interval = Annotated[
    float, typer.Option("--interval-s", min=0.2, max=600, help="Seconds between two looks.")
]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(top)


def top(
    address: Address = "",
    project: Project = names.DEFAULT_PROJECT,
    interval_s: Interval = 2.0,
    as_json: Json = False,
) -> None:
    """Show queues, batches, rates, hit rates and jobs of all services, until Ctrl-C.

    With --json, or where the output is no terminal, one view over one interval. Jobs are those of
    the project, everything else is of all projects together.
    """

    async def work(client: AsyncClient) -> None:
        if as_json or not output.out.is_terminal:
            await _once(client, interval_s, as_json=as_json)
        else:
            await _live(client, interval_s)

    try:
        run(work, address, project)
    except KeyboardInterrupt:  # how it ends
        return


async def _once(client: AsyncClient, interval_s: float, *, as_json: bool) -> None:
    before = await client.stats()
    await asyncio.sleep(interval_s)
    found, jobs = rates(before, await client.stats()), await _running(client)
    if as_json:
        output.print_json({**dataclasses.asdict(found), "running_jobs": jobs})
    else:
        output.out.print(_view(client.address, found, jobs))


async def _live(client: AsyncClient, interval_s: float) -> None:
    """Look again and again; a gateway that goes away is waited for, the first look is not."""
    before = await client.stats()
    shown: RenderableType = _view(client.address, rates(before, before), await _running(client))
    with Live(shown, console=output.out, screen=True, auto_refresh=False) as live:
        live.refresh()
        while True:
            await asyncio.sleep(interval_s)
            try:
                before, shown = await _look(client, before)
                live.update(shown, refresh=True)
            except ClientError as error:
                said = Text(f"{error.message}; trying again", style="bold red")
                live.update(Group(said, shown), refresh=True)


async def _look(
    client: AsyncClient, before: info_pb2.GetStatsResponse
) -> tuple[info_pb2.GetStatsResponse, RenderableType]:
    after = await client.stats()
    return after, _view(client.address, rates(before, after), await _running(client))


async def _running(client: AsyncClient) -> list[jobs_pb2.DistillationJob]:
    """Return the project's newest jobs that have not ended."""
    found = await client.jobs.list(limit=_MOST_JOBS)
    return [job for job in found if job.state not in FINAL]


def _view(address: str, found: Rates, jobs: list[jobs_pb2.DistillationJob]) -> Group:
    head = f"[bold]stillhouse top[/bold]  {address}  over {found.over_s:.1f} s"
    parts: list[Any] = [Text.from_markup(head), top_tables.processes(found)]
    if found.models:
        parts.append(top_tables.models(found))
    if found.caches:
        parts.append(top_tables.caches(found))
    parts.append(top_tables.counts(found))
    if jobs:
        parts.append(top_tables.jobs(jobs))
    return Group(*parts)
