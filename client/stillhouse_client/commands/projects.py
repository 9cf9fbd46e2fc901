"""`stillhouse projects`: create, look, set what is kept and who is told, delete."""

from __future__ import annotations

from typing import Annotated

import typer
from stillhouse.gateway.v1 import projects_pb2 as pb

from stillhouse_client import names
from stillhouse_client.client import AsyncClient
from stillhouse_client.commands import output
from stillhouse_client.commands.session import Address, Json, run
from stillhouse_client.errors import InvalidRequest

app = typer.Typer(no_args_is_help=True, help="What belongs together, and how long it is kept.")
Name = Annotated[str, typer.Argument(help="Project.")]
Failed = Annotated[
    int | None, typer.Option(help="Days that failed jobs and their checkpoints are kept; 0: ever.")
]
Finished = Annotated[
    int | None, typer.Option(help="Days that jobs which made no student are kept; 0: ever.")
]
Outputs = Annotated[
    int | None, typer.Option(help="Days that outputs of stages can be found again; 0: ever.")
]
Webhook = Annotated[
    list[str] | None,
    typer.Option(help="URI that is told when a job ends; again for more. Replaces the list."),
]


@app.command()
def create(
    name: Name,
    failed_job_days: Failed = None,
    finished_job_days: Finished = None,
    stage_output_days: Outputs = None,
    webhook: Webhook = None,
    address: Address = "",
    as_json: Json = False,
) -> None:
    """Create a project. Secrets of new webhooks are printed this once."""
    rules = _retention(None, failed_job_days, finished_job_days, stage_output_days)

    async def work(client: AsyncClient) -> pb.Project:
        return await client.projects.create(name, retention=rules, webhooks=_hooks(webhook))

    _print(run(work, address, name), as_json=as_json)


@app.command("list")
def list_(address: Address = "", as_json: Json = False) -> None:
    """List the projects that have settings or data."""
    found = run(lambda client: client.projects.list(), address, names.DEFAULT_PROJECT)
    if as_json:
        output.print_json({"projects": found})
        return
    rows = [
        (names.last(one.name), str(len(one.webhooks)), "being deleted" if one.deleting else "")
        for one in found
    ]
    output.table(["project", "#webhooks", "state"], rows)


@app.command()
def show(name: Name, address: Address = "", as_json: Json = False) -> None:
    """Show a project's settings."""
    _print(run(lambda client: client.projects.get(name), address, name), as_json=as_json)


@app.command("set")
def set_(
    name: Name,
    failed_job_days: Failed = None,
    finished_job_days: Finished = None,
    stage_output_days: Outputs = None,
    webhook: Webhook = None,
    no_webhooks: Annotated[bool, typer.Option("--no-webhooks", help="Tell nobody.")] = False,
    address: Address = "",
    as_json: Json = False,
) -> None:
    """Change a project's settings; what is not given stays."""
    days = (failed_job_days, finished_job_days, stage_output_days)

    async def work(client: AsyncClient) -> pb.Project:
        rules = None
        if any(one is not None for one in days):
            rules = _retention((await client.projects.get(name)).retention, *days)
        hooks = [] if no_webhooks else _hooks(webhook)
        return await client.projects.update(name, retention=rules, webhooks=hooks)

    _print(run(work, address, name), as_json=as_json)


@app.command()
def delete(
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", help="Without it nothing is deleted.")] = False,
    address: Address = "",
    as_json: Json = False,
) -> None:
    """Delete a project with all its data, and show what was removed."""
    if not yes:
        raise InvalidRequest(
            f"this deletes all data of {name}, students included, for ever", hint="add --yes"
        )
    output.note(f"deleting {name}")
    found = run(lambda client: client.projects.delete(name), address, name)
    if as_json:
        output.print_json(found)
        return
    output.table(
        ["kind", "#before", "#after"],
        [(one.kind, f"{one.before:,}", f"{one.after:,}") for one in found.data],
    )


def _retention(
    known: pb.Retention | None, failed: int | None, finished: int | None, outputs: int | None
) -> pb.Retention:
    rules = pb.Retention()
    if known is not None:
        rules.CopyFrom(known)
    given = {
        "failed_job_days": failed,
        "finished_job_days": finished,
        "stage_output_days": outputs,
    }
    for field, days in given.items():
        if days is not None:
            setattr(rules, field, days)
    return rules


def _hooks(uris: list[str] | None) -> list[pb.Webhook] | None:
    return None if uris is None else [pb.Webhook(uri=one) for one in uris]


def _print(project: pb.Project, *, as_json: bool) -> None:
    if as_json:
        output.print_json(project)
        return
    rules = project.retention
    rows = [
        ("failed jobs", _days(rules.failed_job_days)),
        ("finished jobs without a student", _days(rules.finished_job_days)),
        ("outputs of stages", _days(rules.stage_output_days)),
        *((one.uri, one.secret or "secret as before") for one in project.webhooks),
    ]
    output.table([names.last(project.name), "kept, or told with"], rows)


def _days(days: int) -> str:
    return f"{days:,} days" if days else "for ever"
