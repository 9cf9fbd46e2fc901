"""`stillhouse login`, `logout`, `whoami`, `keys`, `audit`, `quota`: who may do what."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from stillhouse.gateway.v1 import access_pb2 as pb

from stillhouse_client import credentials, names
from stillhouse_client.access import role_name
from stillhouse_client.client import AsyncClient
from stillhouse_client.commands import output
from stillhouse_client.commands.session import Address, Json, Project, resolve, run

_DAY_S = 86_400
keys = typer.Typer(no_args_is_help=True, help="API keys: make, list and revoke them.")
quota = typer.Typer(no_args_is_help=True, help="What a project may use.")
Everywhere = Annotated[bool, typer.Option("--everywhere", help="Of every project, not of one.")]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command()(login)
    app.command()(logout)
    app.command()(whoami)
    app.command()(audit)
    app.add_typer(keys, name="keys")
    app.add_typer(quota, name="quota")


def login(address: Address = "") -> None:
    """Keep an API key for a gateway, in a file that only you can read."""
    key = typer.prompt("API key", hide_input=True).strip()
    file = credentials.keep(resolve(address), key)
    try:
        found = _who(address)
    except BaseException:
        credentials.forget(resolve(address))
        raise
    output.say(f"logged in as {found.display_name or found.subject}; the key is in {file}")


def logout(address: Address = "") -> None:
    """Remove the key kept for a gateway. It stays valid until it is revoked."""
    there = credentials.forget(resolve(address))
    output.say("logged out" if there else "there was no key for this gateway")


def whoami(address: Address = "", as_json: Json = False) -> None:
    """Show who you are to the gateway and what you may do."""
    found = _who(address)
    if as_json:
        output.print_json(found)
        return
    output.say(f"{found.subject} {found.display_name}".strip())
    rows = [(grant.project, role_name(grant.role)) for grant in found.grants]
    output.table(["project", "role"], rows)


def audit(
    limit: Annotated[int, typer.Option(min=1, help="At most this many.")] = 50,
    everywhere: Everywhere = False,
    address: Address = "",
    project: Project = names.DEFAULT_PROJECT,
    as_json: Json = False,
) -> None:
    """List what was changed or refused, newest first."""

    async def work(client: AsyncClient) -> list[pb.AuditEntry]:
        return await client.access.audit(limit=limit, project="*" if everywhere else "")

    found = run(work, address, project)
    if as_json:
        output.print_json(found)
        return
    rows = [
        (
            output.age(one.time),
            one.display_name or one.subject or "?",
            one.method.rpartition("/")[2],
            one.resource,
            one.code,
        )
        for one in found
    ]
    output.table(["when", "who", "did", "to", "outcome"], rows)


@keys.command()
def admin(file: Annotated[Path, typer.Argument(help="A new file for the key.")]) -> None:
    """Make the first key of an installation, for GATEWAY_ADMIN_KEY_FILE. Asks no gateway."""
    credentials.make_admin_key(file)
    output.say(f"wrote {file}; give it to the gateway as GATEWAY_ADMIN_KEY_FILE")


@keys.command()
def create(
    role: Annotated[str, typer.Argument(help="viewer, tuner, runner or admin.")],
    name: Annotated[str, typer.Option(help="What people call it.")] = "",
    days: Annotated[int, typer.Option(min=1, max=3650, help="Days until it expires.")] = 90,
    everywhere: Everywhere = False,
    address: Address = "",
    project: Project = names.DEFAULT_PROJECT,
    as_json: Json = False,
) -> None:
    """Make an API key of the project and print it; it cannot be shown again."""

    async def work(client: AsyncClient) -> pb.CreateApiKeyResponse:
        whose = "*" if everywhere else ""
        lifetime_s = days * _DAY_S
        return await client.access.create_key(
            role, display_name=name, lifetime_s=lifetime_s, project=whose
        )

    made = run(work, address, project)
    if as_json:
        output.print_json(made)
        return
    output.err.print("keep this key; it is not stored and cannot be shown again:")
    print(made.secret)


@keys.command("list")
def list_(
    everywhere: Everywhere = False,
    address: Address = "",
    project: Project = names.DEFAULT_PROJECT,
    as_json: Json = False,
) -> None:
    """List the project's keys, newest first."""

    async def work(client: AsyncClient) -> list[pb.ApiKey]:
        return await client.access.keys(project="*" if everywhere else "")

    found = run(work, address, project)
    if as_json:
        output.print_json(found)
        return
    rows = [
        (
            names.last(one.name),
            one.display_name,
            role_name(one.role),
            "revoked" if one.HasField("revoke_time") else output.day(one.expire_time),
            output.age(one.last_used_time) if one.HasField("last_used_time") else "never",
        )
        for one in found
    ]
    output.table(["key", "name", "role", "until", "last used"], rows)


@keys.command()
def revoke(
    key: Annotated[str, typer.Argument(help="Id of the key, as `keys list` shows it.")],
    everywhere: Everywhere = False,
    address: Address = "",
    project: Project = names.DEFAULT_PROJECT,
) -> None:
    """Revoke a key; other gateways of the installation notice within seconds."""

    async def work(client: AsyncClient) -> pb.ApiKey:
        return await client.access.revoke_key(key, project="*" if everywhere else "")

    output.say(f"revoked {names.last(run(work, address, project).name)}")


@quota.command()
def show(
    address: Address = "", project: Project = names.DEFAULT_PROJECT, as_json: Json = False
) -> None:
    """Show what the project may use and what it uses."""

    async def work(client: AsyncClient) -> pb.Quota:
        return await client.access.quota()

    _print(run(work, address, project), as_json=as_json)


@quota.command("set")
def set_(
    calls_per_second: Annotated[float | None, typer.Option(min=0)] = None,
    jobs: Annotated[int | None, typer.Option(min=0)] = None,
    stored_bytes: Annotated[int | None, typer.Option(min=0)] = None,
    address: Address = "",
    project: Project = names.DEFAULT_PROJECT,
    as_json: Json = False,
) -> None:
    """Set the project's own limits; those not given are the gateway's, 0 is no limit."""
    limits = pb.QuotaLimits(
        calls_per_second=calls_per_second, unfinished_jobs=jobs, stored_bytes=stored_bytes
    )

    async def work(client: AsyncClient) -> pb.Quota:
        return await client.access.set_quota(limits)

    _print(run(work, address, project), as_json=as_json)


def _print(found: pb.Quota, *, as_json: bool) -> None:
    if as_json:
        output.print_json(found)
        return
    limits = found.limits
    rows = [
        ("calls a second", "", f"{limits.calls_per_second:g}"),
        ("unfinished jobs", f"{found.unfinished_jobs:,}", f"{limits.unfinished_jobs:,}"),
        ("stored bytes", f"{found.stored_bytes:,}", f"{limits.stored_bytes:,}"),
    ]
    output.table(["what", "#used", "#limit"], rows)


def _who(address: str) -> pb.WhoAmIResponse:
    async def work(client: AsyncClient) -> pb.WhoAmIResponse:
        return await client.access.who_am_i()

    return run(work, address, names.DEFAULT_PROJECT)
