"""A suite with the demo's students in it, started where none runs in the folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Running:
    """A workbench's address and, where the suite is ours to disturb, its data folder."""

    url: str
    data_dir: Path | None = None
    opener: urllib.request.OpenerDirector = field(
        default_factory=lambda: urllib.request.build_opener(urllib.request.ProxyHandler({}))
    )

    def call(self, path: str, body: object = None) -> Any:
        """Return the JSON answer to a GET, or to a POST of `body`. Raises HTTPError."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self.url}/v1/projects/default/{path}",
            data=data,
            headers={"content-type": "application/json"},
        )
        with self.opener.open(request, timeout=60) as answer:
            return json.load(answer)

    def head(self, student: str) -> str:
        """Return the number of a student's head version."""
        name: str = self.call(f"students/{student}")["student"]["headVersion"]
        return name.rsplit("/", 1)[1]

    def kill_gateway(self) -> None:
        """kill -9; the suite's supervisor starts it again."""
        assert self.data_dir is not None
        rows = status(self.data_dir)["services"]
        (pid,) = (row["pid"] for row in rows if row["name"] == "gateway")
        os.kill(pid, signal.SIGKILL)


def stillhouse(*arguments: str, data_dir: Path) -> str:
    """Run a command to its end and return what it wrote. Raises RuntimeError."""
    command = [sys.executable, "-m", "stillhouse_client", *arguments, "--data-dir", str(data_dir)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {done.stderr or done.stdout}")
    return done.stdout


def status(data_dir: Path) -> dict[str, Any]:
    """Return what `stillhouse status` says."""
    command = [sys.executable, "-m", "stillhouse_client", "status", "--json"]
    answer = subprocess.run(
        [*command, "--data-dir", str(data_dir)], capture_output=True, text=True
    ).stdout
    parsed: dict[str, Any] = json.loads(answer)
    return parsed


@contextmanager
def running_suite(folder: Path) -> Iterator[Running]:
    """Yield a suite that has the demo's students; one that was started for it is stopped again."""
    ours = not status(folder)["running"]
    if ours:
        stillhouse("up", "--detach", "--port", "0", data_dir=folder)
    try:
        running = Running(status(folder)["web"].rstrip("/"), folder)
        students = running.call("students").get("students", [])
        if not any(one["name"].endswith("/fruit-fine") for one in students):
            stillhouse("demo", data_dir=folder)
        yield running
    finally:
        if ours:
            stillhouse("down", data_dir=folder)
