"""`python -m services.gateway.keeping fsck|gc|backup|restore`: what `stillhouse` runs for these.

It works on the gateway's database and blob store themselves, as `GATEWAY_*` settings name them,
beside a running gateway or without one.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable
from functools import partial

from rich.console import Console

from services.common.errors import NotFound, StillhouseError
from services.gateway.keeping import commands
from services.gateway.keeping.showing import Bar

EXIT_FAILED, EXIT_USAGE, EXIT_NOT_FOUND, EXIT_INTERRUPTED = 1, 2, 3, 130


def main() -> None:
    """Run one command and exit: 0 all well, 1 something is lost or was refused."""
    given = _parser().parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    work: Callable[[], tuple[dict[str, object], list[str], bool]]
    bar = Bar(given.command, quiet=given.json)
    work = partial(getattr(commands, given.command), given, bar)
    try:
        with bar:
            body, lines, is_well = work()
    except StillhouseError as error:
        _fail(error, as_json=given.json)
    if given.json:
        print(json.dumps(body, indent=2, sort_keys=True))
    else:
        Console(soft_wrap=True, highlight=False, markup=False).print("\n".join(lines))
    if bar.interrupted:
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(0 if is_well else EXIT_FAILED)


def _fail(error: StillhouseError, *, as_json: bool) -> None:
    kind = type(error).__name__
    if as_json:
        print(json.dumps({"error": {"kind": kind, "message": error.message}}))
    else:
        print(f"error: {error.message}", file=sys.stderr)
    sys.exit(EXIT_NOT_FOUND if type(error) is NotFound else EXIT_FAILED)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="services.gateway.keeping", description=__doc__)
    commands_of = parser.add_subparsers(dest="command", required=True)
    fsck = commands_of.add_parser("fsck")
    fsck.add_argument("--from", dest="source", default="")
    fsck.add_argument("--after", default="")
    fsck.add_argument("--no-repair", action="store_true")
    collect = commands_of.add_parser("gc")
    collect.add_argument("--yes", action="store_true")
    collect.add_argument("--despite-damage", action="store_true")
    collect.add_argument("--grace-hours", type=float, default=24.0)
    collect.add_argument("--quarantine-days", type=float, default=30.0)
    collect.add_argument("--stages-days", type=float, default=0.0)
    backup = commands_of.add_parser("backup")
    backup.add_argument("dest")
    restore = commands_of.add_parser("restore")
    restore.add_argument("src")
    restore.add_argument("--id", default="")
    restore.add_argument("--digest", default="")
    restore.add_argument("--revoke-keys", action="store_true")
    for one in (fsck, collect, backup, restore):
        one.add_argument("--json", action="store_true")
    return parser


if __name__ == "__main__":
    main()
