"""A whole suite that speaks mutual TLS: calls through the gateway, and HTTPS to browsers."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx2
import pytest
from stillhouse.common.v1 import info_pb2, info_pb2_grpc

from tests.common import certificates

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def stillhouse(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    command = [sys.executable, "-m", "stillhouse_client", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240)


@contextmanager
def up(data_dir: Path, certs: Path) -> Iterator[dict[str, Any]]:
    """Run a suite until the block ends, and yield what it says of itself."""
    command = [sys.executable, "-m", "stillhouse_client", "up", "--json", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--data-dir", str(data_dir), "--certs", str(certs)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        text = ""
        for line in process.stdout:
            text += line
            if line.startswith("}"):
                break
        yield json.loads(text)
    finally:
        process.terminate()
        process.communicate(timeout=90)


def check_deletion(folder: str) -> None:
    """A project with data is deleted, and the command shows that nothing is left of it."""
    hook = ("--webhook", "https://example.org/hook", "--failed-job-days", "3")
    made = stillhouse("projects", "create", "short", *hook, "--json")
    assert json.loads(made.stdout)["webhooks"][0]["secret"].startswith("whsec_"), made.stderr
    added = stillhouse("models", "list", "--project", "short")
    assert added.returncode == 0
    assert stillhouse("projects", "delete", "short").returncode == 2
    gone = stillhouse("projects", "delete", "short", "--yes", "--json")
    counts = {one["kind"]: one for one in json.loads(gone.stdout)["data"]}
    assert int(counts["settings"]["before"]) == 1, folder
    assert {int(one["after"]) for one in counts.values()} == {0}
    assert stillhouse("projects", "show", "short").returncode == 3


@pytest.mark.slow
def test_a_suite_with_certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certs = tmp_path / "certs"
    assert stillhouse("certs", str(certs)).returncode == 0
    with up(tmp_path / "data", certs) as said:
        addresses = {row["name"]: row["address"] for row in said["services"]}
        assert {row["state"] for row in said["services"]} == {"serving"}
        assert said["web"].startswith("https://")

        monkeypatch.setenv("STILLHOUSE_DATA_DIR", str(tmp_path / "data"))
        models = stillhouse("models", "list", "--json")  # gateway, teacher
        assert models.returncode == 0, models.stderr
        assert "efficientnet-lite0" in models.stdout

        trusted = ssl.create_default_context(cafile=str(certs / "ca.pem"))
        models = httpx2.get(
            f"{said['web']}v1/projects/default/models", verify=trusted, trust_env=False, timeout=60
        )
        assert models.json()["models"]  # browser, edge, gateway, teacher

        stats = stillhouse("top", "--json")
        assert {"teacher", "concepts", "student"} <= set(stats.stdout.split('"')), stats.stderr

        for name in ("teacher", "concepts", "student", "gateway"):
            with grpc.insecure_channel(addresses[name], options=certificates.OPTIONS) as channel:
                stub = info_pb2_grpc.InfoServiceStub(channel)
                with pytest.raises(grpc.RpcError) as refused:
                    stub.GetInfo(info_pb2.GetInfoRequest(), timeout=10)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        check_deletion(str(certs))
        away = stillhouse("models", "list", "--address", addresses["gateway"])  # plain text
        assert away.returncode == 4
