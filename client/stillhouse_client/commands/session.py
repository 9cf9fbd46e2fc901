"""How a command reaches the gateway: common flags, one event loop, errors with exit codes."""

from __future__ import annotations

import asyncio
import difflib
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from stillhouse_client import names, settings
from stillhouse_client.certificates import Certificates
from stillhouse_client.client import AsyncClient
from stillhouse_client.errors import ClientError, InvalidRequest, NotFound, ServerAway
from stillhouse_client.suite import state
from stillhouse_client.transport import DEFAULT_ADDRESS

R = TypeVar("R")

Address = Annotated[
    str,
    typer.Option(
        "--address",
        envvar=settings.ADDRESS,
        help="Gateway, host:port. Without it: the suite of --data-dir, else 127.0.0.1:7100.",
    ),
]
Project = Annotated[
    str, typer.Option("--project", envvar=settings.PROJECT, help="Project of short names.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout and nothing else.")]
Split = Annotated[
    str,
    typer.Option(help="train, val or test, which often flatters; without it train and val."),
]
DataDir = Annotated[
    Path, typer.Option("--data-dir", envvar=settings.DATA_DIR, help="Folder of a local suite.")
]

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NOT_FOUND = 3
EXIT_AWAY = 4
EXIT_INTERRUPTED = 130
_RETRY_S = 3.0
_RESOURCE = re.compile(r"projects/[a-z0-9-]+/([A-Za-z]+)/([^\s/'\"`]+)")


def resolve(address: str) -> str:
    """Return the address to call: the given one, a running local suite's, or the default."""
    if address:
        return address
    running = state.read(settings.default_data_dir())
    return running.gateway if running is not None else DEFAULT_ADDRESS


def certificates(address: str) -> Certificates | None:
    """Return what is shown to the gateway: as the environment says, else as a local suite does."""
    return settings.certificates() if address else shown_to(settings.default_data_dir())


def shown_to(data_dir: Path) -> Certificates | None:
    """Return what is shown to the gateway of a data folder."""
    given = settings.certificates()
    running = None if given else state.read(data_dir)
    return given if running is None else running.certificates


def connect(address: str, project: str, *, retry_s: float = _RETRY_S) -> AsyncClient:
    """Return a client for a command."""
    shown = certificates(address)
    return AsyncClient(resolve(address), project=project, retry_s=retry_s, certificates=shown)


def run(work: Callable[[AsyncClient], Awaitable[R]], address: str, project: str) -> R:
    """Run a command's work with a client. Unknown names get near matches."""

    async def go() -> R:
        async with connect(address, project) as client:
            try:
                return await work(client)
            except NotFound as error:
                await _suggest(client, error)
                raise

    return asyncio.run(go())


def exit_code(error: ClientError) -> int:
    """Return the exit code of an error: 2 wrong request, 3 unknown name, 4 server away, else 1."""
    codes = {InvalidRequest: EXIT_USAGE, NotFound: EXIT_NOT_FOUND, ServerAway: EXIT_AWAY}
    return next((code for kind, code in codes.items() if isinstance(error, kind)), EXIT_FAILED)


def near(word: str, known: list[str]) -> str:
    """Return `did you mean ...` for the known words nearest to `word`, or an empty text."""
    lower = {k.lower(): k for k in known}
    found = difflib.get_close_matches(word.lower(), list(lower), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(repr(lower[f]) for f in found)}?" if found else ""


async def _suggest(client: AsyncClient, error: NotFound) -> None:
    match = _RESOURCE.search(error.fields.get("resource", "")) or _RESOURCE.search(error.message)
    if match is None or error.hint:
        return
    collection, wanted = match.groups()
    try:
        known = [names.last(name) for name in await _known(client, collection)]
    except ClientError:
        return
    if wanted in known:
        return
    listed = f"known {collection}: {', '.join(known[:20])}" if known else f"no {collection} yet"
    error.hint = near(wanted, known) or listed


async def _known(client: AsyncClient, collection: str) -> list[str]:
    if collection == "datasets":
        return [d.name for d in await client.datasets.list()]
    if collection == "students":
        return [s.name for s in await client.students.list()]
    if collection == "distillationJobs":
        return [j.name for j in await client.jobs.list(limit=100)]
    if collection == "models":
        return [m.name for m in await client.models.teachers()]
    if collection == "encoders":
        return [e.name for e in await client.models.encoders()]
    if collection == "conceptSets":
        return [c.name for c in await client.models.concept_sets()]
    return []
