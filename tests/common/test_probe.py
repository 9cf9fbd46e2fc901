"""The probe asks real servers and says by its exit status what they are."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from services.common.probe import main, probe
from services.common.settings import Listening
from tests.support import free_port


@pytest.fixture
def server() -> Iterator[tuple[int, health.HealthServicer]]:
    checks = health.HealthServicer()
    running = grpc.server(ThreadPoolExecutor(2))
    health_pb2_grpc.add_HealthServicer_to_server(checks, running)
    port = running.add_insecure_port("127.0.0.1:0")
    running.start()
    yield port, checks
    running.stop(None)


def test_it_tells_a_service_that_serves_from_one_that_does_not(
    server: tuple[int, health.HealthServicer], capsys: pytest.CaptureFixture[str]
) -> None:
    port, checks = server
    assert main([f"127.0.0.1:{port}"]) == 0
    checks.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    checks.set("live", health_pb2.HealthCheckResponse.SERVING)
    assert main([f"127.0.0.1:{port}"]) == 1
    assert main([f"127.0.0.1:{port}", "--service", "live"]) == 0
    assert main([f"127.0.0.1:{port}", "--service", "unheard-of"]) == 1
    assert capsys.readouterr().out.split() == ["SERVING", "NOT_SERVING", "SERVING", "NOT_FOUND"]


def test_silence_is_not_health() -> None:
    assert probe(f"127.0.0.1:{free_port()}", timeout_s=2.0) == "UNAVAILABLE"


def test_a_service_is_found_by_its_name(
    server: tuple[int, health.HealthServicer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEACHER_PORT", str(server[0]))
    monkeypatch.setenv("TEACHER_HOST", "0.0.0.0")
    assert main(["teacher"]) == 0
    monkeypatch.delenv("TEACHER_PORT")
    assert Listening.of("teacher").address == "127.0.0.1:7101"


def test_what_is_no_address_is_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["techer"])
    assert caught.value.code == 2
    assert "techer" in capsys.readouterr().err
