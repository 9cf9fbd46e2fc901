"""`stillhouse up`: starts everything, says so, survives a crash, leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support import free_port

pytestmark = pytest.mark.e2e
MEMBERS = ["redis", "teacher", "concepts", "student", "gateway"]


def stillhouse(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    command = [sys.executable, "-m", "stillhouse_client", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


def status(data_dir: Path) -> dict[str, Any]:
    """Return what `stillhouse status` says."""
    answer = stillhouse("status", "--data-dir", str(data_dir), "--json")
    parsed: dict[str, Any] = json.loads(answer.stdout)
    return parsed


def members(data_dir: Path) -> dict[str, dict[str, Any]]:
    """Return the suite's processes by name."""
    return {row["name"]: row for row in status(data_dir)["services"]}


def until(condition: Callable[[], bool], *, timeout_s: float = 120.0) -> None:
    """Wait for something to become true."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "it did not happen in time"
        time.sleep(0.2)


def alive(pid: int) -> bool:
    """Return whether a process runs; one that has ended but is not yet reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@contextmanager
def up(data_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """Run `stillhouse up` until the block ends, which begins once all serve."""
    command = [sys.executable, "-m", "stillhouse_client", "up", "--json", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--data-dir", str(data_dir)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        text = ""
        for line in process.stdout:
            text += line
            if line.startswith("}"):
                break
        assert [row["name"] for row in json.loads(text)["services"]] == MEMBERS
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("suite")


def test_up_serves_and_ctrl_c_ends_it_all(data_dir: Path) -> None:
    with up(data_dir) as process:
        running = members(data_dir)
        assert {row["state"] for row in running.values()} == {"serving"}
        assert all(Path(row["log"]).is_file() for row in running.values())

        web = status(data_dir)["web"]
        info = httpx2.get(f"{web}v1/info", trust_env=False).json()
        assert info["service"] == "gateway"
        models = httpx2.get(f"{web}v1/projects/default/models", trust_env=False, timeout=30)
        assert models.json()["models"]

        second = stillhouse("up", "--data-dir", str(data_dir), "--port", "0")
        assert second.returncode == 1
        assert "already running" in second.stderr
        assert members(data_dir) == running

        os.kill(running["student"]["pid"], signal.SIGKILL)
        until(lambda: members(data_dir)["student"]["pid"] != running["student"]["pid"])
        until(lambda: members(data_dir)["student"]["state"] == "serving")

        last = members(data_dir)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert not [name for name, row in last.items() if alive(row["pid"])]
        assert status(data_dir) == {"running": False, "services": []}


def test_nothing_outlives_a_killed_supervisor(data_dir: Path) -> None:
    with up(data_dir) as process:
        running = members(data_dir)
        process.kill()
        until(lambda: not any(alive(row["pid"]) for row in running.values()), timeout_s=20)
    assert not status(data_dir)["running"]


@pytest.mark.slow
def test_detached_up_and_down(data_dir: Path) -> None:
    started = stillhouse("up", "--data-dir", str(data_dir), "--port", "0", "--detach", "--json")
    try:
        assert started.returncode == 0, started.stderr
        assert json.loads(started.stdout)["running"]
        pids = [row["pid"] for row in members(data_dir).values()]
    finally:
        stopped = stillhouse("down", "--data-dir", str(data_dir), "--json")
    assert json.loads(stopped.stdout) == {"stopped": True}
    assert not [pid for pid in pids if alive(pid)]


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    port = free_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        result = stillhouse("up", "--data-dir", str(tmp_path), "--port", str(port))
    assert result.returncode == 1
    assert f"{port} (gateway)" in result.stderr
    assert "--port" in result.stderr
