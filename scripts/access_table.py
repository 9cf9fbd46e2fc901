"""Writes the table of docs/access.md: who may call which RPC, from the contract's options.

`python scripts/access_table.py` writes it; with `--check` it only says whether it is current.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from stillhouse.common.v1 import access_pb2, info_pb2  # noqa: E402
from stillhouse.gateway.v1 import access_pb2 as gateway_access_pb2  # noqa: E402
from stillhouse.gateway.v1 import (  # noqa: E402
    datasets_pb2,
    jobs_pb2,
    models_pb2,
    projects_pb2,
    students_pb2,
)
from stillhouse.inference.v2 import open_inference_pb2  # noqa: E402

from services.gateway.access.rules import CALLER, INSTALLATION, PUBLIC, Rule, rule_of  # noqa: E402

PAGE = ROOT / "docs" / "access.md"
BEGIN, END = "<!-- begin of the table -->\n", "<!-- end of the table -->\n"
_FILES = (
    gateway_access_pb2,
    projects_pb2,
    datasets_pb2,
    jobs_pb2,
    models_pb2,
    students_pb2,
    info_pb2,
    open_inference_pb2,
)


def table() -> str:
    """Return the table: a row for each RPC of the gateway."""
    rows = ["| RPC | who | in the audit log |", "|---|---|---|"]
    return "\n".join([*rows, *_rows()]) + "\n"


def with_table(page: str) -> str:
    """Return the page with the table as it is now."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}{table()}{END}{rest.partition(END)[2]}"


def _rows() -> Iterator[str]:
    for file in _FILES:
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                rule = rule_of(f"{service.full_name}/{method.name}")
                said = "" if rule.read_only else "yes"
                yield f"| {service.name}.{method.name} | {_who(rule)} | {said} |"


def _who(rule: Rule) -> str:
    if rule.scope == PUBLIC:
        return "everybody, without credentials"
    if rule.scope == CALLER:
        return "everybody with credentials"
    role = access_pb2.Role.Name(rule.role).removeprefix("ROLE_").lower()
    return f"{role} of every project (`*`)" if rule.scope == INSTALLATION else role


def main() -> int:
    """Write or check the page."""
    page = PAGE.read_text(encoding="utf-8")
    if "--check" in sys.argv:
        return int(with_table(page) != page)
    PAGE.write_text(with_table(page), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
