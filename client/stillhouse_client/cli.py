"""The `stillhouse` command: its tree of commands, and errors as messages with exit codes."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from stillhouse_client.commands import (
    access,
    certs,
    datasets,
    distill,
    jobs,
    keeping,
    models,
    output,
    projects,
    students,
    suite,
    top,
)
from stillhouse_client.commands import demo as demo_command
from stillhouse_client.commands.session import exit_code
from stillhouse_client.errors import ClientError

app = typer.Typer(
    name="stillhouse",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Knowledge distillation with students you can tune without code.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong request, 3 unknown name, 4 server away.",
)
suite.register(app)
top.register(app)
keeping.register(app)
certs.register(app)
access.register(app)
app.add_typer(demo_command.app, name="demo")
app.add_typer(projects.app, name="projects")
app.add_typer(datasets.app, name="datasets")
app.add_typer(models.app, name="models")
app.add_typer(distill.app, name="distill")
app.add_typer(jobs.app, name="jobs")
app.add_typer(students.app, name="students")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit the process."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app(given)
    except ClientError as error:
        _print_error(error, as_json="--json" in given)
        sys.exit(exit_code(error))


def _print_error(error: ClientError, *, as_json: bool) -> None:
    if as_json:
        body = {"kind": error.kind, "message": error.message, "hint": error.hint}
        output.print_json({"error": {**body, "fields": error.fields}})
        return
    output.err.print("[bold red]error:[/bold red]", end=" ")
    output.err.print(error.message, markup=False, soft_wrap=True)
    for field, text in error.fields.items():
        if text not in error.message and field != "resource":
            output.err.print(f"  {field}: {text}", markup=False, soft_wrap=True)
    if error.hint:
        output.err.print(f"  {error.hint}", markup=False, soft_wrap=True)
