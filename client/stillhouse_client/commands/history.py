"""`stillhouse students redo`, `checkout` and `rename`: move between versions and name them."""

from __future__ import annotations

from typing import Annotated

import typer
from stillhouse.gateway.v1 import students_pb2 as pb

from stillhouse_client import names
from stillhouse_client.client import AsyncClient
from stillhouse_client.commands import output
from stillhouse_client.commands.session import Address, Json, Project, run

Student = Annotated[str, typer.Argument(help="Name of the student.")]
Number = Annotated[str, typer.Argument(help="Version: number, head or promoted.")]
RequestId = Annotated[str, typer.Option(help="UUID that makes it safe to repeat.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command()(redo)
    app.command()(checkout)
    app.command()(rename)


def redo(
    student: Student,
    address: Address = "",
    project: Project = names.DEFAULT_PROJECT,
    as_json: Json = False,
) -> None:
    """Go forward again to the newest version tuned from the head."""

    async def work(client: AsyncClient) -> pb.StudentVersion:
        return await client.students.redo(student)

    _print_head(run(work, address, project), as_json=as_json)


def checkout(
    student: Student,
    version: Number,
    request_id: RequestId = "",
    address: Address = "",
    project: Project = names.DEFAULT_PROJECT,
    as_json: Json = False,
) -> None:
    """Make any version the head, so that the next tuning goes on from it."""

    async def work(client: AsyncClient) -> pb.StudentVersion:
        return await client.students.set_head(student, version, request_id=request_id)

    _print_head(run(work, address, project), as_json=as_json)


def rename(
    student: Student,
    version: Number,
    name: Annotated[str, typer.Argument(help="Name for people; empty takes it away.")] = "",
    request_id: RequestId = "",
    address: Address = "",
    project: Project = names.DEFAULT_PROJECT,
    as_json: Json = False,
) -> None:
    """Give a version a name for people."""

    async def work(client: AsyncClient) -> pb.StudentVersion:
        return await client.students.rename(student, version, name, request_id=request_id)

    found = run(work, address, project)
    if as_json:
        output.print_json(found)
    elif found.display_name:
        output.say(f"version {names.last(found.name)} is called {found.display_name!r} now")
    else:
        output.say(f"version {names.last(found.name)} has no name now")


def _print_head(version: pb.StudentVersion, *, as_json: bool) -> None:
    if as_json:
        output.print_json(version)
    else:
        name = f" ({version.display_name})" if version.display_name else ""
        output.say(f"version {names.last(version.name)}{name} is the head now")
