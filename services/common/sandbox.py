"""Runs Python code that nobody trusts, in an operating-system sandbox."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Outcome:
    """How a run ended; `reason` says why it did not pass, for people."""

    passed: bool
    reason: str = ""


class Sandbox(Protocol):
    """Something that runs code without letting it touch anything."""

    def run(self, code: str, tests: str, *, timeout_s: float) -> Outcome:
        """Run `code`, then `tests` after it. Blocking."""
        ...
