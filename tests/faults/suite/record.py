"""The record of a campaign: one line of JSON for each thing that is known, so that an interrupted
campaign goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.faults.suite.faults import Fault, Round


class Record:
    """Lines of one file; each is written at once and whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, kind: str, **values: Any) -> None:
        """Write a line."""
        with self.path.open("a") as out:
            out.write(json.dumps({"kind": kind, **values}) + "\n")
            out.flush()
            os.fsync(out.fileno())

    def lines(self, *kinds: str) -> Iterator[dict[str, Any]]:
        """The lines of some kinds; one that was cut off is left out."""
        if not self.path.exists():
            return
        for line in self.path.read_text().splitlines():
            try:
                found = json.loads(line)
            except ValueError:
                continue
            if found["kind"] in kinds:
                yield found

    def forget(self, kind: str) -> None:
        """Take the lines of a kind away."""
        kinds = ("round", "calm")
        kept = [one for one in self.lines(*kinds) if one["kind"] != kind]
        self.path.write_text("".join(json.dumps(one) + "\n" for one in kept))

    def valid(self) -> Iterator[dict[str, Any]]:
        """What the rounds came to; those from which nothing follows are left out."""
        return (one for one in self.lines("round") if not one["void"])

    def done(self) -> dict[str, set[tuple[str, str, str]]]:
        """The places of the matrix that have had their fault, by job kind."""
        found: dict[str, set[tuple[str, str, str]]] = {}
        for one in self.valid():
            job = Round.parse(one["text"]).job
            cells = {Fault.parse(each["fault"]).cell for each in one["injected"]}
            found.setdefault(job, set()).update(cells)
        return found

    def missed(self) -> dict[tuple[str, str], int]:
        """How often a job was over too soon for a fault, by job kind and fault."""
        found: dict[tuple[str, str], int] = {}
        for one in self.valid():
            job = Round.parse(one["text"]).job
            for text in one["missed"]:
                found[job, text] = found.get((job, text), 0) + 1
        return found
