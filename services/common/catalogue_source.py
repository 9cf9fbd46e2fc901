"""Where a catalogue entry's files come from: a registry, a hub, or a path."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import BaseModel, ConfigDict

_SOURCES = {
    "pypi": re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*)==(?P<version>[A-Za-z0-9][\w.+-]*)"),
    "npm": re.compile(r"(?P<name>(?:@[a-z0-9][\w.-]*/)?[a-z0-9][\w.-]*)@(?P<version>\d[\w.+-]*)"),
    "hf": re.compile(
        r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<version>[A-Za-z0-9][\w.-]*))?"
    ),
    "file": re.compile(r"(?P<name>[^\0]+)(?P<version>)"),
}
_FORMS = "pypi:NAME==VERSION!path, npm:NAME@VERSION!path, hf:OWNER/REPO@REVISION!path or file:PATH"


class Source(BaseModel):
    """Where an artefact comes from, parsed from text such as ``pypi:NAME==VERSION!member/path``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scheme: Literal["pypi", "npm", "hf", "file"]
    name: str
    """Package, hub repository, or (for ``file``) the path as written."""
    version: str = ""
    member: str = ""
    """Path inside the artefact; a trailing slash means the whole folder, empty means everything."""

    @classmethod
    def parse(cls, text: str) -> Source:
        """Read the text form. Raises ValueError saying which forms there are."""
        scheme, _, rest = text.partition(":")
        if scheme not in _SOURCES:
            raise ValueError(f"source {text!r} is none of {_FORMS}")
        rest, _, member = (rest, "", "") if scheme == "file" else rest.partition("!")
        match = _SOURCES[scheme].fullmatch(rest)
        if match is None:
            raise ValueError(f"source {text!r} is none of {_FORMS}")
        return cls.model_validate(
            {"scheme": scheme, "member": member}
            | {k: v or "" for k, v in match.groupdict().items()}
        )

    def __str__(self) -> str:
        joint = {"pypi": "==", "npm": "@", "hf": "@", "file": ""}[self.scheme]
        version = f"{joint}{self.version}" if self.version else ""
        member = f"!{self.member}" if self.member else ""
        return f"{self.scheme}:{self.name}{version}{member}"
