"""Lists the licences of all that Stillhouse depends on: `python scripts/licences.py`.

Python packages are those of requirements/, with what their installed metadata says; npm's are those
of web/package-lock.json; weights and data are the catalogue's entries. The list is
docs/licences.md. `--check`, a part of `make lint`, fails where it lacks a package, or where a
licence is neither allowed nor an exception with a reason (scripts/licences.toml).
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.metadata
import json
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "licences.md"
RULES: dict[str, Any] = tomllib.loads(
    (ROOT / "scripts" / "licences.toml").read_text(encoding="utf-8")
)
_PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)", re.MULTILINE)
_ID = re.compile(r"[A-Za-z0-9.+-]+")
_ROW = re.compile(r"^\| (\S+) \| (\S+) \| (.+?) \|$", re.MULTILINE)
_HEAD = """# Licences

What Stillhouse, itself under Apache-2.0, depends on. Made by `make licences` from the pinned
packages' own metadata, `web/package-lock.json` and the catalogue of weights and data; `make lint`
checks that nothing is missing and that every licence is allowed by `scripts/licences.toml`, where
the exceptions stand with their reasons.
"""


@dataclass(frozen=True)
class Used:
    """Something that is used: a package, weights or data."""

    part: str
    name: str
    version: str
    licence: str = ""


def main() -> int:
    """Write the page, or check it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only check the page")
    if not parser.parse_args().check:
        PAGE.write_text(page(), encoding="utf-8")
    found = problems()
    print("\n".join(found) or "licences: all well", file=sys.stderr if found else sys.stdout)
    return 1 if found else 0


def used() -> Iterator[Used]:
    """Yield all that is used, without licences."""
    pins: set[tuple[str, str]] = set()
    for path in sorted((ROOT / "requirements").glob("*.txt")):
        pins |= set(_PIN.findall(path.read_text(encoding="utf-8")))
    for name, version in sorted(pins):
        yield Used("Python packages", name, version)
    lock = json.loads((ROOT / "web" / "package-lock.json").read_text(encoding="utf-8"))
    for path, entry in sorted(lock["packages"].items()):
        if path:
            name = path.rpartition("node_modules/")[2]
            yield Used("npm packages", name, entry["version"], entry.get("license", ""))
    catalogue = ROOT / "services" / "common" / "catalogue.toml"
    entries = tomllib.loads(catalogue.read_text(encoding="utf-8"))["entries"]
    for name, entry in entries.items():
        digest = str(entry.get("sha256", ""))[:12] or "-"
        yield Used("Weights and data", name, digest, entry["licence"])


def problems() -> list[str]:
    """Say what the page lacks, and which licences are not allowed."""
    text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    listed = {(name, version): licence for name, version, licence in _ROW.findall(text)}
    found, met = [], set[tuple[str, str]]()
    for one in used():
        key = (one.name, one.version)
        met.add(key)
        if key not in listed or (one.licence and listed[key] != spelt(one.licence)):
            found.append(f"docs/licences.md lacks {one.name} {one.version}; run `make licences`")
        elif not is_allowed(one.name, listed[key]):
            found.append(f"{one.name} {one.version}: licence {listed[key]!r} is not allowed")
    gone = sorted(set(listed) - met - {("name", "version"), ("---", "---")})
    return [*found, *(f"docs/licences.md lists {name}, which is not used" for name, _ in gone)]


def is_allowed(name: str, licence: str) -> bool:
    """Return whether a licence is on the list, in an expression of which any or all are, or the
    thing is an exception."""
    if _matching(RULES["exceptions"], name) is not None:
        return True
    choices = re.split(r"\s+OR\s+", licence.strip("()"))
    return any(_is_listed(_ID.findall(choice)) for choice in choices)


def _is_listed(words: list[str]) -> bool:
    allowed = {*RULES["allowed"], "AND", "WITH"}
    return bool(words) and all(word in allowed for word in words)


def licence_of(name: str) -> str:
    """Return a Python package's licence: what its metadata says, or the table for what is not
    installed here. Raises LookupError."""
    table = _matching(RULES["packages"], name)
    if table is not None:
        return table
    try:
        metadata = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        raise LookupError(f"{name} is not installed; say its licence in licences.toml") from None
    said = [
        one.rpartition("::")[2].strip()
        for one in metadata.get_all("Classifier") or []
        if one.startswith("License ::")
    ]
    text = str(metadata.get("License") or "").partition("\n")[0]
    return spelt(str(metadata.get("License-Expression") or "; ".join(said) or text))


def spelt(licence: str) -> str:
    """Return a licence as SPDX spells it, where that is known."""
    return str(RULES["spelt"].get(licence, licence))


def page() -> str:
    """Return the list as a page."""
    lines, part = [_HEAD], ""
    for one in used():
        if one.part != part:
            part = one.part
            lines += [f"\n## {part}\n", "| name | version | licence |", "|---|---|---|"]
        licence = spelt(one.licence) if one.licence else licence_of(one.name)
        lines.append(f"| {one.name} | {one.version} | {licence} |")
    reasons = [f"- `{name}`: {why}" for name, why in RULES["exceptions"].items()]
    return "\n".join([*lines, "\n## Exceptions\n", *reasons]) + "\n"


def _matching(table: dict[str, str], name: str) -> str | None:
    for pattern, value in table.items():
        if fnmatch.fnmatch(name, pattern):
            return value
    return None


if __name__ == "__main__":
    sys.exit(main())
