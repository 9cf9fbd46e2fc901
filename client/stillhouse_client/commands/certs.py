"""`stillhouse certs`: certificates for a trial of mutual TLS."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stillhouse_client import authority
from stillhouse_client.commands import output
from stillhouse_client.commands.session import Json


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(certs)


def certs(
    folder: Annotated[Path, typer.Argument(help="Where they go; its authority is kept.")],
    days: Annotated[int, typer.Option(min=1, max=3650, help="How long they are good for.")] = 90,
    name: Annotated[
        list[str] | None, typer.Option(help="One more host name or address of the services.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a small certificate authority, and a certificate for each service and for clients.

    For trials: the authority's key lies beside them. Made again, they are renewed.
    """
    made = authority.make(folder, days=days, names=name or [])
    if as_json:
        output.print_json({"certificates": [str(path) for path in made], "days": days})
        return
    output.say(f"{len(made)} certificates in {folder}, good for {days} days")
    output.say(f"start a suite with them: stillhouse up --certs {folder}")
