"""Roles by project, as settings write them: `fruit:runner`, `*:admin`."""

from __future__ import annotations

from collections.abc import Iterable

from services.common import names
from services.common.errors import InvalidInput
from services.gateway.access.identity import EVERY, Role, role_of


def read_grants(given: Iterable[str]) -> dict[str, Role]:
    """Return roles by project of `PROJECT:ROLE` texts. Raises ValueError."""
    found: dict[str, Role] = {}
    for text in given:
        project, _, role = text.partition(":")
        try:
            if project != EVERY:
                names.check_id(project, field="project")
            found[project] = max(found.get(project, role_of(role)), role_of(role))
        except (InvalidInput, ValueError):
            raise ValueError(
                f"{text!r} is not PROJECT:ROLE with one of viewer, tuner, runner, admin"
            ) from None
    return found
