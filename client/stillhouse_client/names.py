"""Resource names, given short (`fruit`) or full (`projects/default/students/fruit`)."""

from __future__ import annotations

import re

from stillhouse_client.errors import InvalidRequest

DEFAULT_PROJECT = "default"


def full(collection: str, name: str, *, project: str = DEFAULT_PROJECT) -> str:
    """Return the full name of `name` in `collection`. Raises InvalidRequest for another kind."""
    if "/" not in name:
        return f"projects/{project}/{collection}/{name}" if name else ""
    parts = name.split("/")
    if len(parts) != 4 or parts[0] != "projects" or parts[2] != collection:
        raise InvalidRequest(
            f"{name!r} is not the name of one of {collection}",
            hint=f"write `{parts[-1]}` or `projects/{project}/{collection}/{parts[-1]}`",
        )
    return name


def version(student: str, number: str, *, project: str = DEFAULT_PROJECT) -> str:
    """Return the full name of a version; `number` may be `head`, `promoted`, `3` or full."""
    if number.startswith("projects/"):
        return number
    return f"{full('students', student, project=project)}/versions/{number}"


def last(name: str) -> str:
    """Return the last part of a resource name."""
    return name.rsplit("/", 1)[-1]


def slug(text: str) -> str:
    """Return `text` as an identifier: 1 to 63 of a-z, 0-9 and `-`, starting with a letter."""
    cleaned = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if not cleaned or not cleaned[0].isalpha():
        cleaned = f"d-{cleaned}".strip("-")
    return cleaned[:63].rstrip("-")
