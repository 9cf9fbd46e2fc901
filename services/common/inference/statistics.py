"""What ModelInfer calls have cost, by model and version, since the process began."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from stillhouse.common.v1 import items_pb2
from stillhouse.inference.v2 import open_inference_pb2 as pb

_MOST = 1000
_NS_PER_MS = 1e6


@dataclass(frozen=True)
class Spent:
    """What one answered call took: `whole_ns` from the first look at it to its response, of which
    `output_ns` went into making the response."""

    items: int
    whole_ns: int
    output_ns: int
    timings: items_pb2.Timings


class Statistics:
    """Counters of the models called last; belongs to one event loop."""

    def __init__(self) -> None:
        self._models: OrderedDict[tuple[str, str], pb.ModelStatistics] = OrderedDict()

    def succeeded(self, name: str, version: str, spent: Spent) -> None:
        """Count an answered call."""
        one, timings = self._of(name, version), spent.timings
        batch = max(timings.batch_size, 1)
        one.inference_count += spent.items
        one.execution_count += math.ceil(spent.items / batch)
        stats, parts = one.inference_stats, _batch(one, batch)
        _add(stats.success, spent.whole_ns)
        _add(stats.queue, timings.queue_ms * _NS_PER_MS)
        for part in (stats, parts):
            _add(part.compute_input, timings.preprocess_ms * _NS_PER_MS)
            _add(part.compute_infer, timings.compute_ms * _NS_PER_MS)
            _add(part.compute_output, spent.output_ns)

    def failed(self, name: str, version: str, whole_ns: int) -> None:
        """Count a call that was refused or went wrong."""
        _add(self._of(name, version).inference_stats.fail, whole_ns)

    def of(self, name: str, version: str) -> Iterator[pb.ModelStatistics]:
        """Yield a model's statistics, or all where `name` is empty, by name and version."""
        for key in sorted(self._models):
            if name in ("", key[0]) and version in ("", key[1]):
                yield self._models[key]

    def _of(self, name: str, version: str) -> pb.ModelStatistics:
        key = (name, version)
        if key not in self._models:
            self._models[key] = pb.ModelStatistics(name=name, version=version)
        self._models.move_to_end(key)
        while len(self._models) > _MOST:
            self._models.popitem(last=False)
        self._models[key].last_inference = time.time_ns() // 1_000_000
        return self._models[key]


def _batch(one: pb.ModelStatistics, size: int) -> pb.InferBatchStatistics:
    """The counters of batches of that size, which stay in order."""
    known = next((batch for batch in one.batch_stats if batch.batch_size == size), None)
    if known is not None:
        return known
    one.batch_stats.add(batch_size=size)
    one.batch_stats.sort(key=lambda batch: batch.batch_size)
    return next(batch for batch in one.batch_stats if batch.batch_size == size)


def _add(duration: pb.StatisticDuration, ns: float) -> None:
    duration.count += 1
    duration.ns += round(ns)
