"""How jobs show: logs, spans of a job and its stages, counts; and the figures of peers."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import pytest_asyncio
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import REGISTRY
from stillhouse.common.v1 import info_pb2, info_pb2_grpc
from stillhouse.gateway.v1 import jobs_pb2

from services.common import stats, tracing
from services.common.errors import PeerUnavailable
from services.common.tracing_otel import OtelTracer, make_provider
from services.gateway import instances
from services.gateway.instances import Instances, resolve
from services.gateway.jobs import records
from services.gateway.jobs.observing import Census
from services.gateway.settings import GatewaySettings
from services.gateway.store import Store
from tests.gateway.lab import Lab, prompts
from tests.gateway.language_peers import HERE, name_of


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    kept, provider = InMemorySpanExporter(), make_provider("gateway", "0", 1.0)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    tracing.use(OtelTracer(provider))
    yield kept
    tracing.stop()


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


@pytest.mark.asyncio(loop_scope="module")
async def test_a_job_is_a_trace_of_stages_and_calls(lab: Lab, spans: InMemorySpanExporter) -> None:
    ended = {"kind": "language", "state": "SUCCEEDED"}
    before = value("stillhouse_jobs_ended_total", **ended)
    fits = {"kind": "language", "stage": "fit", "outcome": "done"}
    fitted = value("stillhouse_stage_seconds_count", **fits)
    spec = {"dataset": await prompts(lab), "teacher": name_of("tuned"), "student": name_of("twin")}
    job = await lab.done(await lab.start(language=spec))
    assert value("stillhouse_jobs_ended_total", **ended) == before + 1
    assert value("stillhouse_stage_seconds_count", **fits) == fitted + 1
    digest = hashlib.sha256(job["name"].encode()).hexdigest()[:32]
    async with asyncio.timeout(10):  # the job says that it is done before its span ends
        while not (mine := _of_trace(spans, digest)) or "job language" not in mine:
            await asyncio.sleep(0.02)
    root = mine["job language"][0]
    assert root.attributes["stillhouse.job"] == job["name"]
    assert root.parent is None
    stages = {name for name in mine if name.startswith("stage ")}
    assert stages == {f"stage {one['stage']}" for one in job["stages"]}
    job_id = job["name"].rpartition("/")[2]
    for name in stages:
        (stage,) = mine[name]
        assert stage.parent.span_id == root.context.span_id
        assert stage.attributes["stillhouse.job_id"] == job_id
    onward, answered = _two_sides(mine, "stillhouse.teacher.v1", "SampleTargets")
    assert onward.parent.span_id == mine["stage targets"][0].context.span_id
    assert answered.parent.span_id == onward.context.span_id
    assert answered.attributes["stillhouse.job_id"] == job_id
    assert answered.attributes["stillhouse.project"] == HERE.project
    (trained,) = mine["stillhouse.student.v1.StudentService/Train"]
    assert trained.parent.span_id == mine["stage fit"][0].context.span_id


def _of_trace(spans: InMemorySpanExporter, trace_id: str) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for span in spans.get_finished_spans():
        if f"{span.context.trace_id:032x}" == trace_id:
            found.setdefault(span.name, []).append(span)
    return found


def _two_sides(mine: dict[str, list[Any]], package: str, method: str) -> tuple[Any, Any]:
    """The first call of a method as the caller and as the service saw it."""
    onward = mine[f"{package}/{method}"][0]
    service = next(name for name in mine if name.endswith(f"Service/{method}"))
    by_parent = {span.parent.span_id: span for span in mine[service]}
    return onward, by_parent[onward.context.span_id]


async def test_unfinished_jobs_are_counted(store: Store) -> None:
    spec = jobs_pb2.DistillationJob(concept=jobs_pb2.ConceptJobSpec(dataset="d"))
    rows = [
        records.create(
            store,
            jobs_pb2.CreateDistillationJobRequest(project="p", job=spec, request_id=f"r{n}"),
        )[0]
        for n in range(4)
    ]
    ended = {"kind": "concept", "state": "FAILED"}
    before = value("stillhouse_jobs_ended_total", **ended)
    records.append(store, rows[0].pk, "runs", state="RUNNING")
    for _ in range(2):  # only the first ends it
        records.append(store, rows[1].pk, "fails", state="FAILED")
    census = Census(store)
    await census.count()
    counts = {state: value("stillhouse_jobs", state=state) for state in ("QUEUED", "RUNNING")}
    assert counts == {"QUEUED": 2, "RUNNING": 1}
    assert value("stillhouse_jobs", state="CANCELLING") == 0
    assert value("stillhouse_jobs_ended_total", **ended) == before + 1
    census.start()
    await census.stop()


class Info(info_pb2_grpc.InfoServiceServicer):
    """A process that tells its figures."""

    def __init__(self, instance: str) -> None:
        self.instance = instance

    async def GetStats(self, request: Any, context: Any) -> info_pb2.GetStatsResponse:
        found = stats.take("teacher", "0", "cpu")
        found.instance = self.instance
        return info_pb2.GetStatsResponse(instances=[found])


@pytest_asyncio.fixture
async def two() -> AsyncIterator[list[str]]:
    """Two processes of a service, by address."""
    servers, addresses = [], []
    for number in range(2):
        server = grpc.aio.server()
        info_pb2_grpc.add_InfoServiceServicer_to_server(Info(f"box:{number}"), server)
        addresses.append(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
        await server.start()
        servers.append(server)
    yield addresses
    for server in servers:
        await server.stop(None)


async def test_every_process_behind_an_address_is_asked(
    two: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instances, "_ASK_S", 30.0)
    settings = GatewaySettings(
        teacher_address=f"ipv4:{','.join(two)}",
        concepts_address="127.0.0.1:1",
        student_address="dns:///no-such-host.invalid:7103",
    )
    asked = Instances(settings)
    found = await asked.stats()
    await asked.close()
    assert [(one.service, one.instance) for one in found] == [
        ("teacher", "box:0"),
        ("teacher", "box:1"),
        ("concepts", ""),
        ("student", ""),
    ]
    assert [one.address for one in found[:3]] == [*two, "127.0.0.1:1"]
    assert all(one.error.message for one in found[2:])


async def test_addresses_of_targets() -> None:
    assert await resolve("127.0.0.1:7101") == ["127.0.0.1:7101"]
    assert await resolve("dns:///127.0.0.1:7101") == ["127.0.0.1:7101"]
    assert await resolve("[::1]:7101") == ["[::1]:7101"]
    assert await resolve("ipv4:10.0.0.1:1,10.0.0.2:2") == ["10.0.0.1:1", "10.0.0.2:2"]
    assert await resolve("10.0.0.1:1, 10.0.0.2:2") == ["10.0.0.1:1", "10.0.0.2:2"]
    assert await resolve("unix:/run/teacher.sock") == ["unix:/run/teacher.sock"]
    with pytest.raises(PeerUnavailable, match=r"no-such-host\.invalid"):
        await resolve("dns:///no-such-host.invalid:1")


async def test_one_process_at_two_addresses_is_shown_once(tmp_path: Path) -> None:
    answered = info_pb2.InstanceStats(instance="box:1", address="127.0.0.1:1")
    silent = info_pb2.InstanceStats(address="[::1]:1")
    elsewhere = info_pb2.InstanceStats(address="10.0.0.2:1")
    distinct = instances._distinct
    assert distinct([silent, answered]) == [answered]
    assert distinct([answered, answered]) == [answered]
    assert distinct([answered, elsewhere]) == [answered, elsewhere]
    assert distinct([silent]) == [silent]
