"""Traces: across processes, by a job's name, and nothing at all where they are off."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator

import grpc
import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from stillhouse.teacher.v1 import teacher_pb2, teacher_pb2_grpc

from services.common import tracing
from services.common.errors import Precondition
from services.common.settings import ServiceSettings
from services.common.tracing_otel import OtelTracer, make_provider
from tests.common.collector import collector

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
SERVICE = """
import asyncio, sys
from services.common import channels, errors, logs, server
from services.common.settings import ServiceSettings
from stillhouse.teacher.v1 import teacher_pb2, teacher_pb2_grpc

class Teacher(teacher_pb2_grpc.TeacherServiceServicer):
    async def GetModel(self, request, context):
        logs.get("test").info("at work")
        if not behind:
            raise errors.PeerUnavailable("no model")
        channel = channels.open_channel(behind, max_message_bytes=1 << 20)
        stub = teacher_pb2_grpc.TeacherServiceStub(channel)
        return await channels.call(stub.GetModel, request, timeout_s=10)

def register(grpc_server):
    teacher_pb2_grpc.add_TeacherServiceServicer_to_server(Teacher(), grpc_server)
    return ["stillhouse.teacher.v1.TeacherService"]

name, endpoint, behind = sys.argv[1:]
logs.configure(name, json=True)
settings = ServiceSettings(port=0, drain_s=5, otel_endpoint=endpoint)
asyncio.run(server.run(server.App(service=name, settings=settings, register=register)))
"""


@contextlib.contextmanager
def running(name: str, endpoint: str, behind: str = "") -> Iterator[tuple[str, list[str]]]:
    """A service process; its address, and its log once it has ended."""
    log: list[str] = []
    process = subprocess.Popen(
        [sys.executable, "-c", SERVICE, name, endpoint, behind],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split()[1], log
    finally:
        process.terminate()
        _, said = process.communicate(timeout=30)
        log += said.splitlines()
    assert process.returncode == 0, log


def test_a_call_is_one_trace_and_one_request_through_two_processes() -> None:
    metadata = [
        ("traceparent", f"00-{TRACE}-{PARENT}-01"),
        ("x-request-id", "r-7"),
        ("x-job-id", "job-9"),
    ]
    with collector() as spans:
        with (
            running("back", spans.address) as (back, back_log),
            running("front", spans.address, back) as (front, front_log),
            grpc.insecure_channel(front) as channel,
        ):
            stub = teacher_pb2_grpc.TeacherServiceStub(channel)
            request = teacher_pb2.GetModelRequest(name="projects/pp/models/m")
            with pytest.raises(grpc.RpcError) as caught:
                stub.GetModel(request, timeout=20, metadata=metadata)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        found = spans.spans  # each process has sent what it had before it ended
    by_kind = {(one.service, one.kind): one for one in found}
    first, onward, last = by_kind["front", 2], by_kind["front", 3], by_kind["back", 2]
    assert len(found) == 3
    assert {one.trace_id for one in found} == {TRACE}
    assert (first.parent_id, onward.parent_id, last.parent_id) == (
        PARENT,
        first.span_id,
        onward.span_id,
    )
    assert first.process != last.process
    assert first.name == last.name == "stillhouse.teacher.v1.TeacherService/GetModel"
    for one in (first, last):
        assert one.failed
        assert one.attributes["rpc.response.status_code"] == "UNAVAILABLE"
        assert one.attributes["stillhouse.project"] == "pp"
        assert one.attributes["stillhouse.request_id"] == "r-7"
        assert one.attributes["stillhouse.job_id"] == "job-9"
    for log in (front_log, back_log):
        (line,) = [one for one in log if "at work" in one]
        for part in ('"request_id": "r-7"', '"job_id": "job-9"', '"project": "pp"'):
            assert part in line


def test_a_collector_that_is_away_delays_nobody() -> None:
    with running("alone", "127.0.0.1:1") as (address, _), grpc.insecure_channel(address) as channel:
        stub = teacher_pb2_grpc.TeacherServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.GetModel(teacher_pb2.GetModelRequest(name="n"), timeout=5)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_spans_of_one_job_meet_in_one_trace() -> None:
    kept, provider = InMemorySpanExporter(), make_provider("test", "0", 1.0)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    tracing.use(OtelTracer(provider))
    try:
        for _ in range(2):  # a job that is taken up again
            with tracing.span("job", seed="projects/p/distillationJobs/j"):
                inside = tracing.here()
                quietly = contextlib.suppress(ValueError)
                with tracing.span("stage", {"n": 1}), quietly, tracing.span("fails"):
                    raise ValueError("no good")
        assert tracing.here() is None
        assert dict(tracing.outgoing()) == {}
    finally:
        tracing.stop()
    assert inside is not None
    found = kept.get_finished_spans()
    digest = hashlib.sha256(b"projects/p/distillationJobs/j").hexdigest()[:32]
    assert {f"{span.context.trace_id:032x}" for span in found} == {digest}
    assert len({span.context.span_id for span in found}) == 6
    failed = [span for span in found if not span.status.is_ok]
    assert [span.status.description for span in failed if span.name == "fails"] == ["no good"] * 2
    assert len(failed) == 2


def test_without_a_collector_nothing_is_made_or_imported() -> None:
    code = (
        "import sys; from services.common import tracing, callers\n"
        "from services.common.settings import ServiceSettings\n"
        "tracing.start('s', '0', ServiceSettings())\n"
        "with tracing.span('x', {'a': 1}) as span: span.set({'b': 2}); span.fail('y')\n"
        "tracing.record('r', tracing.here(), 0.0, 1.0); tracing.enter({'traceparent': 'x'})\n"
        "assert callers.outgoing() == () and tracing.here() is None\n"
        "tracing.leave(); tracing.stop()\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ), timeout=60)


def test_a_collector_without_the_extra_is_an_error_that_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    monkeypatch.delitem(sys.modules, "services.common.tracing_otel", raising=False)
    with pytest.raises(Precondition, match=r"stillhouse\[otel\]"):
        tracing.start("s", "0", ServiceSettings(otel_endpoint="127.0.0.1:4317"))
