"""Fill the cache from the command line, with progress: ``python -m services.common.assets --for
demo``.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from services.common.catalogue import Catalogue, CatalogueError, load_catalogue
from services.common.errors import StillhouseError
from services.common.fetch import FetchError, Progress, ensure_all, is_ready

DEFAULT_CACHE = Path("~/.cache/stillhouse")


def _table(catalogue: Catalogue, cache: Path) -> Table:
    table = Table()
    for name in ("id", "kind", "source", "MB", "licence", "cached"):
        table.add_column(name, overflow="fold", no_wrap=name == "id")
    for entry in catalogue:
        table.add_row(
            entry.id,
            entry.kind,
            str(entry.source).partition("!")[0] if entry.source else " + ".join(entry.parts()),
            f"{entry.size_bytes / 1e6:.1f}" if entry.size_bytes else "",
            entry.licence,
            "yes" if is_ready(entry, cache) else "no",
        )
    return table


def _fetch(
    catalogue: Catalogue, names: list[str], cache: Path, console: Console
) -> dict[str, Path]:
    columns = (
        TextColumn("{task.description:28}"),
        BarColumn(),
        DownloadColumn(),
        TimeElapsedColumn(),
    )
    with Bars(*columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def show(progress: Progress) -> None:
            if progress.entry_id not in tasks:
                tasks[progress.entry_id] = bars.add_task(progress.entry_id)
            bars.update(
                tasks[progress.entry_id],
                description=f"{progress.entry_id} {progress.stage}",
                # A downloader's scratch files can outweigh the artefact for a moment.
                completed=min(progress.done_bytes, progress.total_bytes or progress.done_bytes),
                total=progress.total_bytes,
            )

        return ensure_all(catalogue, names, cache, show)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m services.common.assets", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="ID", help="catalogue entries to fetch")
    parser.add_argument(
        "--for", dest="sets", action="append", default=[], metavar="SET", help="a set: demo, test"
    )
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="folder (%(default)s)")
    parser.add_argument(
        "--catalogue", type=Path, action="append", default=[], help="a further catalogue file"
    )
    parser.add_argument("--list", action="store_true", help="show the catalogue and stop")
    parser.add_argument("--json", action="store_true", help="print one JSON object of paths")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status: 0, 1 for a failure, 2 for wrong use, 130 when
    interrupted.
    """
    args = _arguments(argv)
    console = Console(stderr=args.json)
    cache = args.cache.expanduser()
    try:
        catalogue = load_catalogue(args.catalogue)
        if args.list:
            console.print(_table(catalogue, cache))
            return 0
        names = [*args.sets, *args.names]
        if not names:
            console.print("Nothing to fetch: name entries, or a set with --for. --list shows them.")
            return 2
        paths = _fetch(catalogue, names, cache, console)
    except (CatalogueError, FetchError, StillhouseError) as error:
        console.print(f"[red]{type(error).__name__}[/red]: ", end="")
        console.print(str(error), markup=False)
        return 1
    except KeyboardInterrupt:
        console.print("Interrupted; what was fetched whole is kept.")
        return 130
    if args.json:
        print(json.dumps({name: str(path) for name, path in paths.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
