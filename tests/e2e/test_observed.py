"""A gateway and a teacher as processes, seen from outside: metrics, figures, traces, logs."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families
from stillhouse.common.v1 import info_pb2, info_pb2_grpc, items_pb2
from stillhouse.teacher.v1 import teacher_pb2, teacher_pb2_grpc
from stillhouse_client.client import AsyncClient

from services.common import tracing
from services.common.tracing_otel import OtelTracer, make_provider
from tests.client import cli
from tests.common.collector import Collector, collector
from tests.support import Service, free_port, photo, service
from tests.teacher.image_world import MODEL, make_catalogue

pytestmark = pytest.mark.e2e

PROJECT = "seen"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@dataclass
class Suite:
    """The two processes, where their spans go, and the teacher's metrics page."""

    gateway: Service
    teacher: Service
    spans: Collector
    page: str

    def samples(self) -> dict[str, list[tuple[dict[str, str], float]]]:
        """Read the teacher's metrics page."""
        with urllib.request.urlopen(self.page, timeout=10) as reply:
            text = reply.read().decode()
        found: dict[str, list[tuple[dict[str, str], float]]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found.setdefault(sample.name, []).append((sample.labels, sample.value))
        return found


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    folder, port = tmp_path_factory.mktemp("seen"), free_port()
    with collector() as spans:
        teacher = {
            "TEACHER_CATALOGUE": str(make_catalogue(folder)),
            "TEACHER_PRELOAD": MODEL,
            "TEACHER_THREADS": "1",
            "TEACHER_METRICS_PORT": str(port),
            "TEACHER_OTEL_ENDPOINT": f"http://{spans.address}",
            "TEACHER_LOG_JSON": "true",
            "TEACHER_LOG_LEVEL": "DEBUG",
        }
        with service("teacher", folder / "teacher", **teacher) as running:
            gateway = {
                "GATEWAY_DATABASE_URL": f"sqlite:///{folder}/gateway.db",
                "GATEWAY_TEACHER_ADDRESS": running.address,
                "GATEWAY_CONCEPTS_ADDRESS": f"127.0.0.1:{free_port()}",
                "GATEWAY_STUDENT_ADDRESS": f"127.0.0.1:{free_port()}",
                "GATEWAY_OTEL_ENDPOINT": spans.address,
            }
            with service("gateway", folder / "gateway", **gateway) as edge:
                yield Suite(edge, running, spans, f"http://127.0.0.1:{port}/metrics")


def classify(suite: Suite, images: int) -> teacher_pb2.ClassifyResponse:
    request = teacher_pb2.ClassifyRequest(
        model=f"projects/{PROJECT}/models/{MODEL}",
        items=[items_pb2.ImageInput(data=photo(n)) for n in range(images)],
    )
    metadata = [
        ("traceparent", f"00-{TRACE}-{PARENT}-01"),
        ("x-job-id", "job-5"),
        ("x-request-id", "r-5"),
    ]
    with grpc.insecure_channel(suite.teacher.address) as channel:
        stub = teacher_pb2_grpc.TeacherServiceStub(channel)
        return stub.Classify(request, timeout=60, metadata=metadata)


def test_a_call_shows_in_response_metrics_trace_and_log(suite: Suite) -> None:
    spent = classify(suite, 5).timings
    assert min(spent.preprocess_ms, spent.compute_ms, spent.encode_ms) > 0
    assert spent.queue_ms > 0
    assert spent.batch_size == 5
    samples = suite.samples()
    paid = {"project": PROJECT, "work": "job", "device": "cpu"}
    (seconds,) = [v for labels, v in samples["stillhouse_device_seconds_total"] if labels == paid]
    assert seconds == pytest.approx(spent.compute_ms / 1000, rel=0.01)
    assert ({"model": MODEL}, 0.0) in samples["stillhouse_queue_items"]
    assert samples["stillhouse_decode_seconds_count"][0][1] >= 5
    called = {"grpc_method": "stillhouse.teacher.v1.TeacherService/Classify", "grpc_status": "OK"}
    assert (called, 1.0) in samples["grpc_server_call_duration_seconds_count"]
    assert samples["process_resident_memory_bytes"][0][1] > 1 << 20
    ((info, _),) = samples["stillhouse_service_info"]
    assert (info["service"], info["device"]) == ("teacher", "cpu")

    def there(seen: list) -> bool:  # type: ignore[type-arg]
        return {"queue", "compute"} <= {one.name for one in seen if one.trace_id == TRACE}

    mine = {one.name: one for one in suite.spans.wait(there) if one.trace_id == TRACE}
    root = mine["stillhouse.teacher.v1.TeacherService/Classify"]
    assert root.parent_id == PARENT
    assert mine["queue"].parent_id == mine["compute"].parent_id == root.span_id
    assert mine["compute"].attributes == {
        "stillhouse.model": MODEL,
        "stillhouse.batch_size": 5,
    }
    lines = [json.loads(line) for line in suite.teacher.log.read_text().splitlines() if "{" in line]
    (line,) = [one for one in lines if str(one.get("method", "")).endswith("Classify")]
    ids = (line["request_id"], line["job_id"], line["project"], line["service"])
    assert ids == ("r-5", "job-5", PROJECT, "teacher")


async def test_a_program_that_traces_sees_gateway_and_teacher_below_its_own_span(
    suite: Suite,
) -> None:
    tracing.use(OtelTracer(make_provider("program", "0", 1.0)))
    try:
        async with AsyncClient(suite.gateway.address, project=PROJECT) as client:
            with tracing.span("my work"):
                own = dict(tracing.outgoing())["traceparent"].split("-")
                teachers = await client.models.teachers()
    finally:
        tracing.stop()
    assert [one.name for one in teachers if MODEL in one.name]

    def there(seen: list) -> bool:  # type: ignore[type-arg]
        return len([one for one in seen if one.trace_id == own[1]]) >= 3

    mine = [one for one in suite.spans.wait(there) if one.trace_id == own[1]]
    listed, onward, answered = (
        next(one for one in mine if (one.service, one.kind) == key)
        for key in (("gateway", 2), ("gateway", 3), ("teacher", 2))
    )
    assert (listed.parent_id, onward.parent_id) == (own[2], listed.span_id)
    assert answered.parent_id == onward.span_id
    assert listed.process != answered.process
    assert (
        listed.attributes["stillhouse.request_id"] == answered.attributes["stillhouse.request_id"]
    )


def test_the_gateway_tells_the_figures_of_all(
    suite: Suite, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    classify(suite, 3)
    with grpc.insecure_channel(suite.gateway.address) as channel:
        stub = info_pb2_grpc.InfoServiceStub(channel)
        found = stub.GetStats(info_pb2.GetStatsRequest(include_peers=True), timeout=20).instances
    gateway, teacher, concepts, student = found
    assert (gateway.service, teacher.service) == ("gateway", "teacher")
    assert {one.state for one in gateway.jobs} == {"QUEUED", "RUNNING", "CANCELLING"}
    assert teacher.address == suite.teacher.address
    assert teacher.instance.endswith(f":{suite.teacher.process.pid}")
    (model,) = teacher.models
    assert model.model == MODEL
    assert model.batch_items.sum >= 3
    assert model.batch_items.count == model.compute_seconds.count > 0
    assert [one.error.code for one in (concepts, student)] == [14, 14]
    flags = ("--address", suite.gateway.address, "--interval-s", "0.3", "--json")
    shown = cli.run(capsys, "top", *flags).json
    assert {one["service"]: bool(one["away"]) for one in shown["processes"]} == {
        "gateway": False,
        "teacher": False,
        "concepts": True,
        "student": True,
    }
    assert shown["models"][0]["model"] == MODEL
