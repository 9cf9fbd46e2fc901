"""Mutual TLS with a real server process: who is let in, who is not, and renewed certificates."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from stillhouse.teacher.v1 import teacher_pb2, teacher_pb2_grpc

from services.common.channels import call, open_blocking_channel, open_channel
from services.common.errors import PeerUnavailable
from services.common.probe import main as probe_main
from services.common.settings import ServiceSettings
from services.common.tls import Certificates, TlsFiles
from tests.common import certificates

SERVICE = """
import asyncio
from services.common import server
from services.common.settings import ServiceSettings
from stillhouse.teacher.v1 import teacher_pb2, teacher_pb2_grpc

calls = 0

class Teacher(teacher_pb2_grpc.TeacherServiceServicer):
    async def GetModel(self, request, context):
        global calls
        calls += 1
        return teacher_pb2.GetModelResponse(model=teacher_pb2.Model(name=str(calls)))

def register(grpc_server):
    teacher_pb2_grpc.add_TeacherServiceServicer_to_server(Teacher(), grpc_server)
    return ["stillhouse.teacher.v1.TeacherService"]

settings = ServiceSettings(_env_prefix="TEACHER_")
asyncio.run(server.run(server.App(service="teacher", settings=settings, register=register)))
"""
REQUEST = teacher_pb2.GetModelRequest(name="projects/p/models/m")


@contextmanager
def running(certs: Path, **more: str) -> Iterator[str]:
    """Run a teacher that counts its calls."""
    given = {**os.environ, **certificates.environment("TEACHER", certs, "teacher"), **more}
    process = subprocess.Popen(
        [sys.executable, "-c", SERVICE], stdout=subprocess.PIPE, text=True, env=given
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split()[1]
    finally:
        process.kill()
        process.communicate()


def ask(channel: grpc.Channel) -> str:
    """Return how many calls the server has seen, or the code that says why not."""
    with channel:
        stub = teacher_pb2_grpc.TeacherServiceStub(channel)
        try:
            return str(stub.GetModel(REQUEST, timeout=10).model.name)
        except grpc.RpcError as error:
            return str(error.code().name)


@pytest.fixture
def certs(tmp_path: Path) -> Path:
    return certificates.folder(tmp_path / "certs")


def test_whom_the_authority_did_not_sign_is_not_let_in(tmp_path: Path, certs: Path) -> None:
    other = certificates.folder(tmp_path / "other")
    with running(certs) as address:
        refused = {
            "another authority's": certificates.channel(address, other, ca=certs),
            "plain text": grpc.insecure_channel(address, options=certificates.OPTIONS),
            "no certificate": grpc.secure_channel(
                address, grpc.ssl_channel_credentials((certs / "ca.pem").read_bytes())
            ),
            "who trusts another authority": certificates.channel(address, certs, ca=other),
        }
        said = {who: ask(channel) for who, channel in refused.items()}
        assert said == dict.fromkeys(refused, "UNAVAILABLE")

        (tmp_path / "old").mkdir()
        for file in certs.iterdir():
            (tmp_path / "old" / file.name).write_bytes(file.read_bytes())
        expired = certificates.expired(tmp_path / "old")
        assert (expired / "ca.pem").read_bytes() == (certs / "ca.pem").read_bytes()
        assert ask(certificates.channel(address, expired)) == "UNAVAILABLE"

        assert ask(certificates.channel(address, certs)) == "1", "a refused call was counted"


async def test_a_peer_knows_the_service_by_its_name(certs: Path) -> None:
    """Also one behind several addresses; a certificate of another service does not do."""
    files = TlsFiles(certs / "gateway.pem", certs / "gateway.key", certs / "ca.pem")
    with running(certs) as address:
        for target, service, good in (
            (address, "teacher", True),
            (f"{address},{address}", "teacher", True),
            (f"{address},{address}", "concepts", False),
        ):
            channel = open_channel(target, max_message_bytes=1 << 20, tls=files, service=service)
            async with channel:
                stub = teacher_pb2_grpc.TeacherServiceStub(channel)
                if good:
                    assert await call(stub.GetModel, REQUEST, timeout_s=10)
                    continue
                with pytest.raises(PeerUnavailable):
                    await call(stub.GetModel, REQUEST, timeout_s=10)
        blocking = open_blocking_channel(
            address, max_message_bytes=1 << 20, tls=files, service="teacher"
        )
        stub = teacher_pb2_grpc.TeacherServiceStub(blocking)  # type: ignore[arg-type]
        assert stub.GetModel(REQUEST, timeout=10).model.name == "3"
        blocking.close()


async def test_renewed_certificates_are_read_again_by_both_sides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.common.tls._LOOK_S", 0.0)
    certs = certificates.folder(tmp_path / "certs")
    files = TlsFiles(certs / "gateway.pem", certs / "gateway.key", certs / "ca.pem")
    with running(certs) as address:
        async with open_channel(
            address, max_message_bytes=1 << 20, tls=files, service="teacher"
        ) as channel:
            stub = teacher_pb2_grpc.TeacherServiceStub(channel)
            assert (await call(stub.GetModel, REQUEST, timeout_s=10)).model.name == "1"
            for file in certs.iterdir():
                file.unlink()
            certificates.folder(certs)  # another authority: nothing of the old pair is good
            assert (await call(stub.GetModel, REQUEST, timeout_s=10)).model.name == "2"
        assert ask(certificates.channel(address, certs)) == "3"


def test_a_half_replaced_pair_is_not_taken(
    tmp_path: Path, certs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.common.tls._LOOK_S", 0.0)
    other = certificates.folder(tmp_path / "other")
    held = Certificates(TlsFiles(certs / "student.pem", certs / "student.key", certs / "ca.pem"))
    before = held.now()
    (certs / "student.key").write_bytes((other / "student.key").read_bytes())
    assert held.now() is before
    (certs / "student.pem").write_bytes((other / "student.pem").read_bytes())
    assert held.now().cert == (other / "student.pem").read_bytes()


def test_only_certificates_with_the_right_name_call(certs: Path) -> None:
    with running(certs, TEACHER_TLS_CLIENTS='["gateway", "student"]') as address:
        assert ask(certificates.channel(address, certs)) == "PERMISSION_DENIED"
        assert ask(certificates.channel(address, certs, who="gateway")) == "1"


def test_a_probe_shows_the_services_own_certificate(
    certs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(certs, TEACHER_TLS_CLIENTS='["gateway"]') as address:
        for name, value in certificates.environment("TEACHER", certs, "teacher").items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("TEACHER_PORT", address.rpartition(":")[2])
        until_s = time.monotonic() + 30
        while probe_main(["teacher"]) and time.monotonic() < until_s:
            time.sleep(0.1)
        assert capsys.readouterr().out.split()[-1] == "SERVING"
        monkeypatch.delenv("TEACHER_TLS_CERT")
        assert probe_main(["teacher"]) == 1
        assert capsys.readouterr().out.split() == ["UNAVAILABLE"]


@pytest.mark.parametrize("service", ["teacher", "concepts", "student"])
def test_a_service_does_not_listen_to_everybody(service: str, certs: Path) -> None:
    prefix = service.upper()
    command = [sys.executable, "-m", f"services.{service}"]
    given = {**os.environ, f"{prefix}_HOST": "0.0.0.0", f"{prefix}_PORT": "0"}
    ended = subprocess.run(command, env=given, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    for word in (f"{prefix}_TLS_CA", f"{prefix}_TRUSTED_NETWORK", "stillhouse certs"):
        assert word in ended.stderr


def test_what_opens_a_service_off_loopback(certs: Path) -> None:
    files = {"tls_cert": certs / "teacher.pem", "tls_key": certs / "teacher.key"}
    assert ServiceSettings(host="10.0.0.1").is_open
    assert ServiceSettings(host="10.0.0.1", **files).is_open  # encrypted, but for everybody
    assert not ServiceSettings(host="10.0.0.1", tls_ca=certs / "ca.pem", **files).is_open
    assert not ServiceSettings(host="10.0.0.1", trusted_network=True).is_open
    for wrong in ({"tls_cert": certs / "teacher.pem"}, {"tls_ca": certs / "ca.pem"}):
        with pytest.raises(ValueError, match="tls_cert"):
            ServiceSettings(**wrong)


def test_keys_are_for_their_owner_alone(certs: Path) -> None:
    assert {file.stat().st_mode & 0o777 for file in certs.glob("*.key")} == {0o600}
