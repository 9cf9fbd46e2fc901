"""`stillhouse fsck`, `gc`, `backup` and `restore`: look after what a suite stores.

The client knows the contract alone, so these run the gateway's own module, as `up` runs its
services: on the stores of a data folder, or on those that `GATEWAY_*` settings name.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from stillhouse_client import settings
from stillhouse_client.commands.session import DataDir, Json
from stillhouse_client.suite.config import SuiteConfig

_MODULE = "services.gateway.keeping"


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    for command in (fsck, gc, backup, restore):
        app.command()(command)


def fsck(
    data_dir: DataDir = Path(".stillhouse"),
    source: Annotated[
        str, typer.Option("--from", help="Backup, or blob store, to take lost blobs from.")
    ] = "",
    after: Annotated[
        str, typer.Option(help="Go on after this PROJECT/DIGEST, where a check was interrupted.")
    ] = "",
    repair: Annotated[bool, typer.Option(help="Repair what can be repaired.")] = True,
    as_json: Json = False,
) -> None:
    """Check every stored blob, repair what can be repaired, and name what is lost."""
    given = ["--from", source] if source else []
    given += ["--after", after] if after else []
    given += [] if repair else ["--no-repair"]
    _run("fsck", given, data_dir, as_json=as_json)


def gc(
    data_dir: DataDir = Path(".stillhouse"),
    yes: Annotated[bool, typer.Option("--yes", help="Remove; without it, only say what.")] = False,
    grace_hours: Annotated[
        float, typer.Option(min=0, help="Age of what nothing names before it goes.")
    ] = 24.0,
    quarantine_days: Annotated[
        float, typer.Option(min=0, help="Age of damaged blobs that were set aside.")
    ] = 30.0,
    stages_days: Annotated[
        float,
        typer.Option(min=0, help="Forget stages' outputs for later jobs after so long. 0: never."),
    ] = 0.0,
    despite_damage: Annotated[
        bool, typer.Option(help="Collect although what damaged blobs named is not known.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Remove stored blobs that nothing needs; says only which, unless --yes."""
    given = ["--grace-hours", str(grace_hours), "--quarantine-days", str(quarantine_days)]
    given += ["--stages-days", str(stages_days)]
    given += ["--yes"] if yes else []
    given += ["--despite-damage"] if despite_damage else []
    _run("gc", given, data_dir, as_json=as_json)


def backup(
    dest: Annotated[str, typer.Argument(help="Folder or URL; further backups copy what is new.")],
    data_dir: DataDir = Path(".stillhouse"),
    as_json: Json = False,
) -> None:
    """Back up jobs, students, datasets and all blobs, while the suite runs or not."""
    _run("backup", [_absolute(dest)], data_dir, as_json=as_json)


def restore(
    src: Annotated[str, typer.Argument(help="Folder or URL of a backup.")],
    data_dir: DataDir = Path(".stillhouse"),
    backup_id: Annotated[str, typer.Option("--id", help="Which backup; else the newest.")] = "",
    digest: Annotated[
        str, typer.Option(help="Digest of its manifest, as `backup` printed it.")
    ] = "",
    revoke_keys: Annotated[
        bool, typer.Option("--revoke-keys", help="Let no key of the backup work any more.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Restore a backup into an empty place; an interrupted one goes on."""
    given = [_absolute(src)]
    given += ["--id", backup_id] if backup_id else []
    given += ["--digest", digest] if digest else []
    given += ["--revoke-keys"] if revoke_keys else []
    _run("restore", given, data_dir, as_json=as_json)


def _run(command: str, given: list[str], data_dir: Path, *, as_json: bool) -> None:
    """Run the module on the stores and exit as it does; Ctrl-C reaches it as well."""
    arguments = [command, *given, *(["--json"] if as_json else [])]
    process = subprocess.Popen(
        [sys.executable, "-m", _MODULE, *arguments],
        env=settings.child_environment(_stores(data_dir)),
    )
    while True:
        try:
            code = process.wait()
            break
        except KeyboardInterrupt:
            continue
    raise typer.Exit(code)


def _stores(data_dir: Path) -> dict[str, str]:
    """Return where the stores of a data folder are; those of the environment where it names a blob
    store and there is no such folder."""
    if settings.blob_url() and not data_dir.exists():
        return {}
    config = SuiteConfig(data_dir)
    database = settings.database_url() or f"sqlite:///{config.path('gateway.db')}"
    return {"GATEWAY_DATABASE_URL": database, "GATEWAY_BLOB_URL": str(config.path("blobs"))}


def _absolute(place: str) -> str:
    return place if "://" in place else str(Path(place).resolve())
