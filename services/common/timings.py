"""What a call spent: the `Timings` that every response of a model carries."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from stillhouse.common.v1 import items_pb2

from services.common import metrics
from services.common.batching import Served


def timings_of(served: Sequence[Served[Any]], preprocess_ms: float) -> items_pb2.Timings:
    """Return what a call spent; a forward pass that served several of its items counts once."""
    return items_pb2.Timings(
        queue_ms=max((one.queue_ms for one in served), default=0.0),
        preprocess_ms=preprocess_ms,
        compute_ms=sum({one.compute_ms for one in served}),
        batch_size=max((one.batch_size for one in served), default=0),
    )


def together(parts: Sequence[items_pb2.Timings]) -> items_pb2.Timings:
    """Return what the calls that made up one call spent, one after the other."""
    return items_pb2.Timings(
        queue_ms=max((part.queue_ms for part in parts), default=0.0),
        preprocess_ms=sum(part.preprocess_ms for part in parts),
        compute_ms=sum(part.compute_ms for part in parts),
        batch_size=max((part.batch_size for part in parts), default=0),
        encode_ms=sum(part.encode_ms for part in parts),
    )


@contextmanager
def encoding(timings: items_pb2.Timings) -> Iterator[None]:
    """Time a block that writes results into a response, into `timings.encode_ms`."""
    started_s = time.perf_counter()
    yield
    spent_s = time.perf_counter() - started_s
    timings.encode_ms = spent_s * 1000
    metrics.ENCODE_SECONDS.observe(spent_s)
