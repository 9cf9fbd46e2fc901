"""What happened between two looks at the figures of all processes: rates, means, quantiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from google.protobuf.timestamp_pb2 import Timestamp
from stillhouse.common.v1 import info_pb2 as pb

_ASIDE = ("grpc.", "stillhouse.common.v1.InfoService/")
"""Calls that look after a service."""
_OURS = ("UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")
"""Codes that are the service's failure."""


@dataclass(frozen=True)
class ProcessRates:
    """One process. Rates are None where it was not there at the look before."""

    service: str
    instance: str
    address: str
    device: str = ""
    up_s: float = 0.0
    resident_bytes: int = 0
    open_files: int = 0
    busy: float | None = None
    """Share of the time that the device computed; over 1 where work runs side by side."""
    calls_per_s: float | None = None
    failed_per_s: float | None = None
    decode_ms: float | None = None
    """Mean of an image."""
    encode_ms: float | None = None
    """Mean of a call."""
    away: str = ""
    """Why it has no figures."""


@dataclass(frozen=True)
class ModelRates:
    """One queue and the model behind it."""

    service: str
    instance: str
    model: str
    queue_items: int
    items_per_s: float | None
    batch_items: float | None
    """Mean batch."""
    queue_p50_ms: float | None
    queue_p99_ms: float | None
    compute_ms: float | None
    """Mean of a forward pass."""
    refused_per_s: float | None
    dropped_per_s: float | None


@dataclass(frozen=True)
class CacheRates:
    """One cache."""

    service: str
    instance: str
    cache: str
    lookups_per_s: float | None
    hit_rate: float | None


@dataclass(frozen=True)
class Rates:
    """All processes over `over_s` seconds."""

    over_s: float
    processes: list[ProcessRates] = field(default_factory=list)
    models: list[ModelRates] = field(default_factory=list)
    caches: list[CacheRates] = field(default_factory=list)
    jobs: dict[str, int] = field(default_factory=dict)
    """Jobs that have not ended, by state."""
    training: dict[str, int] = field(default_factory=dict)
    """Training runs, `active` and `waiting`."""


def rates(before: pb.GetStatsResponse, after: pb.GetStatsResponse) -> Rates:
    """Return what happened between two answers of GetStats."""
    known = {one.instance: one for one in before.instances if one.instance}
    found = Rates(over_s=_passed_s(before.instances, after.instances))
    for now in after.instances:
        if not now.instance:
            away = now.error.message or "no answer"
            found.processes.append(ProcessRates(now.service, "", now.address, away=away))
            continue
        step = _Step(known.get(now.instance), now)
        found.processes.append(step.process())
        found.models.extend(step.model(one) for one in now.models)
        found.caches.extend(step.cache(one) for one in now.caches)
        # Gateways on one database tell the same jobs; every student has runs of its own.
        found.jobs.update({one.state: one.count for one in now.jobs})
        if now.service == "student":
            _add(found.training, {"active": now.training.active, "waiting": now.training.waiting})
    return found


class _Step:
    """One process from one look to the next."""

    def __init__(self, before: pb.InstanceStats | None, now: pb.InstanceStats) -> None:
        self._now, self._known = now, before is not None
        self._before = before or pb.InstanceStats()
        self._over_s = _seconds(now.time) - _seconds(self._before.time)
        self._models = {one.model: one for one in self._before.models}
        self._caches = {one.cache: one for one in self._before.caches}

    def process(self) -> ProcessRates:
        now, before = self._now, self._before
        return ProcessRates(
            service=now.service,
            instance=now.instance,
            address=now.address,
            device=now.device,
            up_s=_seconds(now.time) - _seconds(now.start_time),
            resident_bytes=now.resident_bytes,
            open_files=now.open_files,
            busy=self._rate(now.device_seconds - before.device_seconds),
            calls_per_s=self._rate(_calls(now) - _calls(before)),
            failed_per_s=self._rate(_calls(now, _OURS) - _calls(before, _OURS)),
            decode_ms=self._mean(now.decode_seconds, before.decode_seconds, 1000),
            encode_ms=self._mean(now.encode_seconds, before.encode_seconds, 1000),
        )

    def model(self, now: pb.ModelStats) -> ModelRates:
        before = self._models.get(now.model) or pb.ModelStats()
        waited = _difference(before.queue_seconds, now.queue_seconds)
        refused = sum(now.refused_items.values()) - sum(before.refused_items.values())
        return ModelRates(
            service=self._now.service,
            instance=self._now.instance,
            model=now.model,
            queue_items=now.queue_items,
            items_per_s=self._rate(now.batch_items.sum - before.batch_items.sum),
            batch_items=self._mean(now.batch_items, before.batch_items),
            queue_p50_ms=self._quantile(waited, 0.5),
            queue_p99_ms=self._quantile(waited, 0.99),
            compute_ms=self._mean(now.compute_seconds, before.compute_seconds, 1000),
            refused_per_s=self._rate(refused),
            dropped_per_s=self._rate(now.dropped_items - before.dropped_items),
        )

    def cache(self, now: pb.CacheStats) -> CacheRates:
        before = self._caches.get(now.cache) or pb.CacheStats()
        hits, misses = now.hits - before.hits, now.misses - before.misses
        asked = hits + misses
        return CacheRates(
            service=self._now.service,
            instance=self._now.instance,
            cache=now.cache,
            lookups_per_s=self._rate(asked),
            hit_rate=hits / asked if asked and self._known else None,
        )

    def _rate(self, change: float) -> float | None:
        return change / self._over_s if self._known and self._over_s > 0 else None

    def _mean(
        self, now: pb.Distribution, before: pb.Distribution, factor: float = 1.0
    ) -> float | None:
        count = now.count - before.count
        return factor * (now.sum - before.sum) / count if count > 0 and self._known else None

    def _quantile(self, waited: pb.Distribution, share: float) -> float | None:
        found = quantile(waited, share) if self._known else None
        return None if found is None else 1000 * found


def quantile(distribution: pb.Distribution, share: float) -> float | None:
    """Return the value that `share` of the observations stay below, evenly spread within a bucket;
    the last bound where it lies over it, None without observations."""
    if distribution.count <= 0 or not distribution.bounds:
        return None
    rank = share * distribution.count
    edges = [(0.0, 0), *zip(distribution.bounds, distribution.counts, strict=True)]
    for (low, below), (high, upto) in pairwise(edges):
        if upto >= rank and upto > below:
            return low + (high - low) * (rank - below) / (upto - below)
    return distribution.bounds[-1]


def _difference(before: pb.Distribution, now: pb.Distribution) -> pb.Distribution:
    """Return the observations between two looks."""
    earlier = before.counts or [0] * len(now.counts)
    return pb.Distribution(
        count=now.count - before.count,
        sum=now.sum - before.sum,
        bounds=now.bounds,
        counts=[b - a for a, b in zip(earlier, now.counts, strict=True)],
    )


def _calls(stats: pb.InstanceStats, codes: Sequence[str] = ()) -> int:
    return sum(
        call.seconds.count
        for call in stats.calls
        if not call.method.startswith(_ASIDE) and (not codes or call.code in codes)
    )


def _add(total: dict[str, int], more: Mapping[str, int]) -> None:
    for name, count in more.items():
        total[name] = total.get(name, 0) + count


def _passed_s(before: Sequence[pb.InstanceStats], after: Sequence[pb.InstanceStats]) -> float:
    """Return the time between two looks, by the clock of the process that was asked."""
    return _seconds(after[0].time) - _seconds(before[0].time) if before and after else 0.0


def _seconds(time: Timestamp) -> float:
    return float(time.seconds + time.nanos / 1e9)
