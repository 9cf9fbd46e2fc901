"""`stillhouse jobs`: list, show, watch, report, samples, cancel."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from stillhouse.gateway.v1 import jobs_pb2 as pb

from stillhouse_client import names
from stillhouse_client.client import AsyncClient
from stillhouse_client.commands import output, samples, watching
from stillhouse_client.commands.job_tables import (
    STATES,
    kind_of,
    print_job,
    print_report,
    require_success,
    source_of,
)
from stillhouse_client.commands.session import EXIT_INTERRUPTED, Address, Json, Project, run
from stillhouse_client.errors import Mismatch
from stillhouse_client.job_report import read

app = typer.Typer(no_args_is_help=True, help="Distillation jobs: durable, resumable, watchable.")
Shown = tuple[pb.DistillationJob, dict[str, Any] | None]
Job = Annotated[str, typer.Argument(help="Name of the job.")]
samples.register(app)


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option(min=1, help="At most this many.")] = 50,
    address: Address = "",
    project: Project = names.DEFAULT_PROJECT,
    as_json: Json = False,
) -> None:
    """List jobs, newest first."""

    async def work(client: AsyncClient) -> list[pb.DistillationJob]:
        return [*await client.jobs.list(limit=limit)]

    found = run(work, address, project)
    if as_json:
        output.print_json(found)
        return
    rows = [
        (
            names.last(job.name),
            kind_of(job),
            source_of(job),
            STATES.get(job.state, "?"),
            _stage_of(job),
            output.age(job.create_time),
        )
        for job in found
    ]
    output.table(["job", "kind", "from", "state", "stage", "created"], rows)


@app.command()
def show(
    job: Job,
    address: Address = "",
    project: Project = names.DEFAULT_PROJECT,
    as_json: Json = False,
) -> None:
    """Show a job: state, stages, what it made, and the tables of its report."""

    async def work(client: AsyncClient) -> Shown:
        found = await client.jobs.get(job)
        return found, None if as_json else await read(client, found)

    print_job(*run(work, address, project), as_json=as_json)


@app.command()
def report(
    job: Job,
    out: Annotated[
        Path | None, typer.Option(help="Write report.html, report.png, report.json there.")
    ] = None,
    address: Address = "",
    project: Project = names.DEFAULT_PROJECT,
    as_json: Json = False,
) -> None:
    """Print the report of a job; with --out, write it with charts."""

    async def work(client: AsyncClient) -> Shown:
        found = await client.jobs.get(job)
        return found, await read(client, found)

    found, measured = run(work, address, project)
    if measured is None:
        raise Mismatch(
            f"{found.name} has no report",
            hint="jobs that train models have one, once they have succeeded",
        )
    files = _write(measured, found, out) if out is not None else []
    if as_json:
        output.print_json(measured)
        return
    print_report(measured)
    for file in files:
        output.say(f"wrote {file}")


@app.command()
def watch(
    job: Job,
    resume_token: Annotated[str, typer.Option(help="Go on after this event.")] = "",
    address: Address = "",
    project: Project = names.DEFAULT_PROJECT,
    as_json: Json = False,
) -> None:
    """Follow a job until it ends. With --json, one JSON line per event."""

    async def work(client: AsyncClient) -> Shown:
        await client.jobs.get(job)
        ended = await watching.follow(client, job, as_json=as_json, resume_token=resume_token)
        return ended, None if as_json else await read(client, ended)

    try:
        ended, measured = run(work, address, project)
    except KeyboardInterrupt:
        watching.interrupted(job)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if not as_json:
        print_job(ended, measured)
    require_success(ended, as_json=as_json)


@app.command()
def cancel(
    job: Job,
    address: Address = "",
    project: Project = names.DEFAULT_PROJECT,
    as_json: Json = False,
) -> None:
    """Cancel a job; what it has computed stays and makes the next run shorter."""

    async def work(client: AsyncClient) -> pb.DistillationJob:
        return await client.jobs.cancel(job)

    cancelled = run(work, address, project)
    if as_json:
        output.print_json(cancelled)
    else:
        output.say(f"{names.last(cancelled.name)} is {STATES.get(cancelled.state, '?')}")


def _stage_of(job: pb.DistillationJob) -> str:
    running = [s for s in job.stages if not s.complete and (s.done or s.elapsed_s)]
    return running[0].stage if running else ""


def _write(report: dict[str, Any], job: pb.DistillationJob, folder: Path) -> list[Path]:
    from stillhouse_client.report.job_page import write  # matplotlib is slow to import

    return write(report, f"{kind_of(job)} {names.last(job.name)}", folder)
