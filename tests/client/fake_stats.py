"""Figures of a small suite: every look is two seconds after the one before, and as busy."""

from __future__ import annotations

import itertools

from google.rpc import code_pb2, status_pb2
from stillhouse.common.v1 import info_pb2 as pb

_LOOKS = itertools.count(1)
STEP_S = 2


def answer(request: pb.GetStatsRequest) -> pb.GetStatsResponse:
    """What GetStats says; only the gateway itself where peers are not asked for."""
    look = next(_LOOKS)
    instances = [gateway(look)]
    if request.include_peers:
        instances += [teacher(look), student(look), away()]
    return pb.GetStatsResponse(instances=instances)


def gateway(look: int) -> pb.InstanceStats:
    found = _instance("gateway", look)
    found.caches.add(cache="regions", hits=30 * look, misses=10 * look)
    for state, count in (("QUEUED", 3), ("RUNNING", 2)):
        found.jobs.add(state=state, count=count)
    _calls(found, "stillhouse.gateway.v1.DistillationService/GetDistillationJob", "OK", 20 * look)
    _calls(found, "stillhouse.common.v1.InfoService/GetStats", "OK", 500 * look)
    return found


def teacher(look: int) -> pb.InstanceStats:
    found = _instance("teacher", look)
    found.device_seconds = 1.5 * look
    found.decode_seconds.CopyFrom(_distribution(100 * look, 0.003))
    _calls(found, "stillhouse.teacher.v1.TeacherService/Classify", "OK", 10 * look)
    _calls(found, "stillhouse.teacher.v1.TeacherService/Classify", "INTERNAL", 4 * look)
    _calls(found, "stillhouse.teacher.v1.TeacherService/Classify", "NOT_FOUND", 4 * look)
    model = found.models.add(model="lite0", queue_items=14, dropped_items=2 * look)
    model.batch_items.CopyFrom(_distribution(10 * look, 16.0))
    model.compute_seconds.CopyFrom(_distribution(10 * look, 0.15))
    model.queue_seconds.CopyFrom(
        pb.Distribution(
            count=100 * look,
            sum=9.0 * look,
            bounds=[0.1, 0.2, 1.0],
            counts=[50 * look, 90 * look, 98 * look],
        )
    )
    model.refused_items["OVERLOADED"] = 6 * look
    return found


def student(look: int) -> pb.InstanceStats:
    found = _instance("student", look)
    found.training.active, found.training.waiting = 1, 4
    return found


def away() -> pb.InstanceStats:
    said = status_pb2.Status(code=code_pb2.UNAVAILABLE, message="connection refused")
    return pb.InstanceStats(service="concepts", address="127.0.0.1:7102", error=said)


def _instance(service: str, look: int) -> pb.InstanceStats:
    found = pb.InstanceStats(
        service=service,
        instance=f"box:{service}",
        address="" if service == "gateway" else f"10.0.0.1:{len(service)}",
        version="0.1.0",
        device="cpu",
        resident_bytes=700 << 20,
        open_files=31,
    )
    found.start_time.seconds, found.time.seconds = 1_000, 1_600 + STEP_S * look
    return found


def _distribution(count: int, mean: float) -> pb.Distribution:
    return pb.Distribution(count=count, sum=count * mean, bounds=[2 * mean], counts=[count])


def _calls(found: pb.InstanceStats, method: str, code: str, count: int) -> None:
    found.calls.add(method=method, code=code, seconds=_distribution(count, 0.01))
