"""Prints the pinned requirements of extras: `python scripts/requirements.py teacher s3`.

An image installs them before it gets the sources, so that a change of the sources leaves them
alone. `--only` leaves out what every service needs. Needs nothing but Python.
"""

from __future__ import annotations

import argparse
import re
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

_OWN = re.compile(r"stillhouse\[([a-z0-9,-]+)\]")


def requirements(project: dict[str, Any], extras: Iterable[str], *, only: bool) -> list[str]:
    """Return the requirements of `extras`, each once, sorted.

    `project` is the `[project]` table of pyproject.toml. Raises KeyError for an unknown extra.
    """
    found = set() if only else set(project["dependencies"])
    return sorted(found | set(_closure(project["optional-dependencies"], extras)))


def _closure(tables: dict[str, list[str]], extras: Iterable[str]) -> Iterator[str]:
    for extra in extras:
        for requirement in tables[extra]:
            own = _OWN.fullmatch(requirement)
            if own:
                yield from _closure(tables, own[1].split(","))
            else:
                yield requirement


def main() -> None:
    """Print one requirement a line, from the pyproject.toml of the working folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("extras", nargs="+", metavar="EXTRA", help="a name, or several with commas")
    parser.add_argument("--only", action="store_true", help="without what every service needs")
    given = parser.parse_args()
    extras = [name for one in given.extras for name in one.split(",") if name]
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    print("\n".join(requirements(project, extras, only=given.only)))


if __name__ == "__main__":
    main()
