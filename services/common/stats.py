"""The figures of this process as messages: what GetStats answers, read from the metrics."""

from __future__ import annotations

import os
import socket
from collections import defaultdict
from collections.abc import Iterable, Mapping

from google.protobuf.timestamp_pb2 import Timestamp
from prometheus_client import REGISTRY
from prometheus_client.samples import Sample
from stillhouse.common.v1 import info_pb2 as pb

_INFINITE = "+Inf"


class Samples:
    """What the registry holds at one moment."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._by_name: dict[str, list[Sample]] = defaultdict(list)
        for sample in samples:
            self._by_name[sample.name].append(sample)

    @classmethod
    def now(cls) -> Samples:
        """Read the registry."""
        return cls(sample for family in REGISTRY.collect() for sample in family.samples)

    def values(self, name: str, label: str) -> set[str]:
        """Return the values that a label of a metric has."""
        return {sample.labels[label] for sample in self._by_name[name]}

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of a metric over the series with these labels."""
        return sum(sample.value for sample in self._having(name, labels))

    def by(self, label: str, name: str, **labels: str) -> dict[str, int]:
        """Return the sums of a metric by one label."""
        found: dict[str, int] = defaultdict(int)
        for sample in self._having(name, labels):
            found[sample.labels[label]] += int(sample.value)
        return dict(found)

    def distribution(self, name: str, **labels: str) -> pb.Distribution:
        """Return a histogram, its series with these labels added up."""
        buckets: dict[float, int] = defaultdict(int)
        for sample in self._having(f"{name}_bucket", labels):
            if sample.labels["le"] != _INFINITE:
                buckets[float(sample.labels["le"])] += int(sample.value)
        bounds = sorted(buckets)
        return pb.Distribution(
            count=int(self.total(f"{name}_count", **labels)),
            sum=self.total(f"{name}_sum", **labels),
            bounds=bounds,
            counts=[buckets[bound] for bound in bounds],
        )

    def _having(self, name: str, labels: Mapping[str, str]) -> Iterable[Sample]:
        wanted = labels.items()
        return (one for one in self._by_name[name] if wanted <= one.labels.items())


def take(service: str, version: str, device: str) -> pb.InstanceStats:
    """Return the figures of this process. Reads /proc."""
    samples = Samples.now()
    time, started = Timestamp(), Timestamp()
    time.GetCurrentTime()
    started.FromMicroseconds(int(samples.total("process_start_time_seconds") * 1e6))
    return pb.InstanceStats(
        service=service,
        instance=f"{socket.gethostname()}:{os.getpid()}",
        version=version,
        device=device,
        time=time,
        start_time=started,
        resident_bytes=int(samples.total("process_resident_memory_bytes")),
        open_files=int(samples.total("process_open_fds")),
        device_seconds=samples.total("stillhouse_device_seconds_total"),
        decode_seconds=samples.distribution("stillhouse_decode_seconds"),
        encode_seconds=samples.distribution("stillhouse_encode_seconds"),
        models=_models(samples),
        caches=_caches(samples),
        calls=_calls(samples),
        training=pb.TrainingStats(**samples.by("state", "stillhouse_training_runs")),
        jobs=[
            pb.JobCount(state=state, count=count)
            for state, count in sorted(samples.by("state", "stillhouse_jobs").items())
        ],
    )


def _models(samples: Samples) -> list[pb.ModelStats]:
    named = ("stillhouse_queue_items", "stillhouse_batch_items_count")
    refused = "stillhouse_refused_items_total"
    models = set[str]().union(*(samples.values(name, "model") for name in (*named, refused)))
    return [
        pb.ModelStats(
            model=model,
            queue_items=int(samples.total("stillhouse_queue_items", model=model)),
            queue_seconds=samples.distribution("stillhouse_queue_seconds", model=model),
            batch_items=samples.distribution("stillhouse_batch_items", model=model),
            compute_seconds=samples.distribution("stillhouse_compute_seconds", model=model),
            refused_items=samples.by("reason", refused, model=model),
            dropped_items=int(samples.total("stillhouse_dropped_items_total", model=model)),
        )
        for model in sorted(models)
    ]


def _caches(samples: Samples) -> list[pb.CacheStats]:
    name = "stillhouse_cache_lookups_total"
    return [
        pb.CacheStats(
            cache=cache,
            hits=int(samples.total(name, cache=cache, outcome="hit")),
            misses=int(samples.total(name, cache=cache, outcome="miss")),
        )
        for cache in sorted(samples.values(name, "cache"))
    ]


def _calls(samples: Samples) -> list[pb.CallStats]:
    name = "grpc_server_call_duration_seconds"
    found = []
    for method in sorted(samples.values(f"{name}_count", "grpc_method")):
        codes = samples.by("grpc_status", f"{name}_count", grpc_method=method)
        for code in sorted(codes):
            seconds = samples.distribution(name, grpc_method=method, grpc_status=code)
            found.append(pb.CallStats(method=method, code=code, seconds=seconds))
    return found
