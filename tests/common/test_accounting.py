"""Who pays for a batch, and what of it a trace shows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import REGISTRY

from services.common import accounting, callers, tracing
from services.common.accounting import Tally, noted
from services.common.batching import Batcher
from services.common.callers import Caller
from services.common.device import Device
from services.common.tracing_otel import OtelTracer, make_provider


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    """Spans that this process makes."""
    kept, provider = InMemorySpanExporter(), make_provider("test", "0", 1.0)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    tracing.use(OtelTracer(provider))
    yield kept
    tracing.stop()


def charged(project: str, work: str = "online") -> float:
    labels = {"project": project, "work": work, "device": "cpu"}
    return REGISTRY.get_sample_value("stillhouse_device_seconds_total", labels) or 0.0


def slow(items: list[int], size: int) -> list[int]:
    time.sleep(0.04)
    return items


async def _call(batcher: Batcher[int, int], project: str, items: int, job_id: str = "") -> None:
    callers.bind(Caller("r", job_id, project))
    with tracing.span(f"call of {project}"):
        await batcher.submit(list(range(items)))


async def test_projects_share_the_cost_and_every_call_sees_its_batch(
    spans: InMemorySpanExporter,
) -> None:
    with ThreadPoolExecutor(1) as executor:
        batcher: Batcher[int, int] = Batcher(
            slow, Device(executor), name="paid", max_batch=8, wait_ms=50
        )
        await asyncio.gather(
            *(_call(batcher, *one) for one in (("rich", 3), ("poor", 1), ("busy", 4, "job-1")))
        )
        await batcher.close()
    total = charged("rich") + charged("poor") + charged("busy", "job")
    assert total >= 0.04
    assert charged("rich") == pytest.approx(3 * charged("poor"))
    assert charged("busy", "job") == pytest.approx(4 * charged("poor"))
    by_name: dict[str, list] = {}
    for span in spans.get_finished_spans():
        by_name.setdefault(span.name, []).append(span)
    calls = {
        span.context.span_id: span
        for name in by_name
        for span in by_name[name]
        if name.startswith("call")
    }
    assert len(calls) == len(by_name["queue"]) == len(by_name["compute"]) == 3
    for span in by_name["compute"]:
        assert span.attributes["stillhouse.batch_size"] == 8
        assert span.attributes["stillhouse.model"] == "paid"
        assert span.end_time - span.start_time >= 40_000_000
        assert span.context.trace_id == calls.pop(span.parent.span_id).context.trace_id


async def test_work_beside_the_queues_is_noted_with_its_caller() -> None:
    tally, seen = Tally(), {}

    def work() -> int:
        seen.update(callers.log_ids(None, "info", {}))
        time.sleep(0.02)
        return 7

    callers.bind(Caller("r-1", "job-2", "beside"))
    with ThreadPoolExecutor(1) as executor:
        loop = asyncio.get_running_loop()
        both = [noted(work, "text", items=items, tally=tally) for items in (5, 2)]
        running = [loop.run_in_executor(executor, one) for one in both]
        assert await asyncio.gather(*running) == [7, 7]
    assert (seen["request_id"], seen["job_id"], seen["project"]) == ("r-1", "job-2", "beside")
    spent = tally.timings(preprocess_ms=3.0)
    assert spent.compute_ms >= 40
    assert spent.queue_ms >= 20  # the second waited for the first
    assert (spent.batch_size, spent.preprocess_ms) == (5, 3.0)
    assert charged("beside", "job") == pytest.approx(spent.compute_ms / 1000)
    count = REGISTRY.get_sample_value("stillhouse_batch_items_sum", {"model": "text"})
    assert count == 7


async def test_training_is_charged_while_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "_EVERY_S", 0.01)
    started_s = time.perf_counter()
    async with accounting.training("trains", devices=2):
        while not charged("trains", "training"):
            await asyncio.sleep(0.005)
        between = charged("trains", "training")
        await asyncio.sleep(0.05)
    assert charged("trains", "training") - between >= 2 * 0.05
    assert charged("trains", "training") <= 2 * (time.perf_counter() - started_s)
