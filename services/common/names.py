"""Resource names: `projects/{p}/models/{m}` and the like, parsed in one place."""

from __future__ import annotations

import re

from services.common.errors import InvalidInput

_ID = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
DEFAULT_PROJECT = "default"


def check_id(value: str, *, field: str) -> str:
    """Return `value` where it is a valid identifier (1 to 63 of a-z, 0-9, `-`, a letter first)."""
    if not _ID.fullmatch(value):
        raise InvalidInput(
            f"{field}: {value[:80]!r} is not valid: "
            "use 1 to 63 of a-z, 0-9 and '-', starting with a letter",
            field=field,
        )
    return value


def parse(name: str, *collections: str, field: str = "name") -> tuple[str, ...]:
    """Return the ids of a resource name, project first.

    `parse("projects/p/models/m", "models")` is `("p", "m")`. Raises InvalidInput for any other
    form.
    """
    parts = name.split("/")
    want = ("projects", *collections)
    if len(parts) != 2 * len(want) or tuple(parts[::2]) != want:
        form = "/".join(f"{collection}/*" for collection in want)
        raise InvalidInput(f"{field}: {name[:120]!r} is not of the form {form}", field=field)
    for part in parts[1::2]:
        if not (part.isdigit() and want[-1] == "versions"):
            check_id(part, field=field)
    return tuple(parts[1::2])


def join(project: str, *pairs: str) -> str:
    """Return a resource name: `join("p", "models", "m")` is `projects/p/models/m`."""
    return "/".join(("projects", project, *pairs))
