"""A real server in a real process: statuses, health, limits, and a drain on SIGTERM and SIGINT."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from stillhouse.common.v1 import info_pb2, info_pb2_grpc
from stillhouse.teacher.v1 import teacher_pb2, teacher_pb2_grpc

from services.common.probe import probe
from services.common.server import LIVE

SERVICE = """
import asyncio, sys
from services.common import errors, interceptors, logs, server
from services.common.settings import ServiceSettings
from stillhouse.teacher.v1 import teacher_pb2, teacher_pb2_grpc

class Teacher(teacher_pb2_grpc.TeacherServiceServicer):
    async def GetModel(self, request, context):
        if request.name == "bug":
            raise RuntimeError("secret inside")
        if request.name == "kernel":
            raise NotImplementedError("secret kernel has no such device")
        if request.name == "disk":
            raise OSError(28, "No space left on device", "/secret/path")
        if request.name == "full":
            raise errors.Overloaded("queue is full", retry_after_s=1.5)
        if request.name == "quota":
            raise errors.QuotaReached("too many", subject="projects/p", retry_after_s=1.5)
        if request.name == "memory":
            raise MemoryError("secret size")
        if request.name == "left":
            left = interceptors.time_left_s(context)
            raise errors.InvalidInput(f"{left is not None and 0 < left <= 11}", field="name")
        if request.name == "slow":
            await asyncio.sleep(1.0)
            return teacher_pb2.GetModelResponse(model=teacher_pb2.Model(name="slow"))
        raise errors.InvalidInput("name: not good", field="name")

def register(grpc_server):
    teacher_pb2_grpc.add_TeacherServiceServicer_to_server(Teacher(), grpc_server)
    return ["stillhouse.teacher.v1.TeacherService"]

canaries = 0

async def canary():
    global canaries
    canaries += 1
    trouble = sys.argv[1] if canaries > 1 else ""
    if trouble == "full":
        raise errors.Overloaded("queue is full")
    if trouble == "broken":
        raise RuntimeError("no device")

logs.configure("test")
settings = ServiceSettings(port=0, drain_s=5, canary_s=0.1, max_connection_age_s=1)
app = server.App(service="teacher", settings=settings, register=register, canary=canary)
asyncio.run(server.run(app))
"""


@contextmanager
def running(trouble: str = "") -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-c", SERVICE, trouble]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().split()[1]
    finally:
        process.kill()
        process.wait()


def _status(call: grpc.RpcError) -> tuple[int, list[str], str]:
    status = rpc_status.from_call(call)
    return status.code, [d.type_url.rsplit(".", 1)[1] for d in status.details], status.message


def test_errors_end_as_rich_statuses_without_a_stack_trace() -> None:
    with running() as (_, address), grpc.insecure_channel(address) as channel:
        stub = teacher_pb2_grpc.TeacherServiceStub(channel)
        seen = {}
        for name in ("bad", "full", "quota", "disk", "memory", "bug", "kernel", "left"):
            with pytest.raises(grpc.RpcError) as caught:
                stub.GetModel(teacher_pb2.GetModelRequest(name=name), timeout=10)
            seen[name] = _status(caught.value)
        assert seen["bad"][:2] == (3, ["ErrorInfo", "BadRequest"])
        assert seen["full"][:2] == (8, ["ErrorInfo", "RetryInfo"])
        assert seen["disk"][:2] == (8, ["ErrorInfo", "RetryInfo"])
        assert seen["quota"][:2] == (8, ["ErrorInfo", "RetryInfo", "QuotaFailure"])
        assert seen["memory"][:2] == (8, ["ErrorInfo"])
        assert "secret" not in seen["memory"][2]
        assert "memory" in seen["memory"][2]
        assert seen["left"][2] == "True"  # the deadline below, whose encoding rounds up
        assert "disk is full" in seen["disk"][2]
        assert "secret" not in seen["disk"][2]
        for name in ("bug", "kernel"):
            assert seen[name][:2] == (13, ["ErrorInfo"])
            assert "secret" not in seen[name][2]
            assert "request id" in seen[name][2]
        with pytest.raises(grpc.RpcError) as caught:
            stub.ListModels(teacher_pb2.ListModelsRequest(), timeout=10)
        assert _status(caught.value)[:2] == (12, ["ErrorInfo"])  # the servicer does not have it
        retry = error_details_pb2.RetryInfo()
        assert retry.DESCRIPTOR.full_name == "google.rpc.RetryInfo"


@pytest.mark.parametrize("answer", ["unary_unary", "unary_stream", "stream_stream"])
def test_bytes_that_are_no_message_are_the_callers_mistake(answer: str) -> None:
    methods = {
        "unary_unary": "stillhouse.teacher.v1.TeacherService/GetModel",
        "unary_stream": "grpc.health.v1.Health/Watch",
        "stream_stream": "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    }
    broken = b"\x0a\xff\xff\xff\xff\x7f"
    with running() as (_, address), grpc.insecure_channel(address) as channel:
        call = getattr(channel, answer)(f"/{methods[answer]}")
        sent = iter([broken]) if answer == "stream_stream" else broken
        with pytest.raises(grpc.RpcError) as caught:
            list(call(sent, timeout=10))
        assert _status(caught.value)[:2] == (3, ["ErrorInfo", "BadRequest"])


def test_health_follows_the_start_and_info_tells_the_limits() -> None:
    with running() as (_, address), grpc.insecure_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for _ in range(100):
            status = health.Check(health_pb2.HealthCheckRequest(), timeout=5).status
            if status == health_pb2.HealthCheckResponse.SERVING:
                break
            asyncio.run(asyncio.sleep(0.05))
        assert status == health_pb2.HealthCheckResponse.SERVING
        info = info_pb2_grpc.InfoServiceStub(channel).GetInfo(info_pb2.GetInfoRequest(), timeout=5)
        assert (info.service, info.limits.max_batch_items) == ("teacher", 256)


def test_health_can_be_watched() -> None:
    """By clients that have several addresses: each must say that it is ready."""
    with running() as (_, address), grpc.insecure_channel(address) as channel:
        watched = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(), timeout=30
        )
        serving = health_pb2.HealthCheckResponse.SERVING
        assert any(answer.status == serving for answer in watched)
        watched.cancel()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_running_calls(number: signal.Signals) -> None:
    with running() as (process, address), grpc.insecure_channel(address) as channel:
        stub = teacher_pb2_grpc.TeacherServiceStub(channel)
        call = stub.GetModel.future(teacher_pb2.GetModelRequest(name="slow"), timeout=10)
        asyncio.run(asyncio.sleep(0.4))
        process.send_signal(number)
        assert call.result().model.name == "slow"
        assert process.wait(timeout=60) == 0


def test_a_canary_without_room_leaves_a_service_ready_and_a_broken_one_does_not() -> None:
    for trouble, line, expected in (
        ("full", "no room for the canary", "SERVING"),
        ("broken", "canary failed", "NOT_SERVING"),
    ):
        with running(trouble) as (process, address):
            assert process.stderr is not None
            while line not in process.stderr.readline():
                assert process.poll() is None
            time.sleep(0.05)  # health is set right after the line
            assert probe(address) == expected
            assert probe(address, service=LIVE) == "SERVING"


def test_a_connection_is_asked_to_go_when_it_is_old_and_its_calls_end_well() -> None:
    with running() as (_, address), grpc.insecure_channel(address) as channel:
        seen: list[grpc.ChannelConnectivity] = []
        gone = threading.Event()

        def watch(state: grpc.ChannelConnectivity) -> None:
            if state == grpc.ChannelConnectivity.IDLE and grpc.ChannelConnectivity.READY in seen:
                gone.set()
            seen.append(state)

        channel.subscribe(watch)
        stub = teacher_pb2_grpc.TeacherServiceStub(channel)
        for _ in range(3):  # each takes as long as a connection may live
            reply = stub.GetModel(teacher_pb2.GetModelRequest(name="slow"), timeout=10)
            assert reply.model.name == "slow"
        assert gone.wait(10)
