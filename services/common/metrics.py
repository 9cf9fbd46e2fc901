"""Prometheus metrics: all that a service exports, in one list. docs/metrics.md says what they mean.

Values of the labels `project` and `model` come from outside, so each is bounded: the first ones are
named, up to a limit, and all others count as `other`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

from prometheus_client import Counter, Gauge, Histogram, Info, start_http_server
from prometheus_client.metrics import MetricWrapperBase

from services.common.settings import ServiceSettings

M = TypeVar("M", bound=MetricWrapperBase)
OTHER = "other"
NOBODY = "-"
"""Project of work that nobody asked for, such as canaries; no project can have this name."""
_LATENCY_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_SHORT_S = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5)
_LONG_S = (0.1, 0.5, 1, 5, 10, 30, 60, 300, 900, 3_600, 14_400, 86_400)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Names:
    """The values that one label takes: as many as `limit`, then `other`."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._known: set[str] = set()

    def bounded(self, name: str) -> str:
        """Return the name, or `other` where there are too many already."""
        if name in self._known:
            return name
        if len(self._known) >= self.limit:
            return OTHER
        self._known.add(name)
        return name

    def forget(self, name: str) -> None:
        """Make room for another name."""
        self._known.discard(name)


_NAMES = {"project": Names(100), "model": Names(100)}


class Bounded(Generic[M]):
    """A metric whose projects and models are bounded."""

    def __init__(self, metric: M, labels: Sequence[str]) -> None:
        self.metric = metric
        self._names = [_NAMES.get(label) for label in labels]

    def labels(self, *values: str) -> M:
        """Return the series of these values, in the order of the metric's labels."""
        pairs = zip(self._names, values, strict=True)
        return self.metric.labels(*(n.bounded(v) if n is not None else v for n, v in pairs))


def _counter(name: str, text: str, labels: Sequence[str]) -> Bounded[Counter]:
    return Bounded(Counter(name, text, labels), labels)


def _gauge(name: str, text: str, labels: Sequence[str]) -> Bounded[Gauge]:
    return Bounded(Gauge(name, text, labels), labels)


def _histogram(
    name: str, text: str, labels: Sequence[str], buckets: Sequence[float]
) -> Bounded[Histogram]:
    return Bounded(Histogram(name, text, labels, buckets=buckets), labels)


# The two names of gRFC A66 with OpenTelemetry's dots as Prometheus writes them.
CALLS_STARTED = _counter("grpc_server_call_started", "RPCs that began.", ["grpc_method"])
CALL_SECONDS = _histogram(
    "grpc_server_call_duration_seconds",
    "Duration of RPCs, streams included.",
    ["grpc_method", "grpc_status"],
    _LATENCY_S,
)

QUEUE_ITEMS = _gauge("stillhouse_queue_items", "Items waiting for a model.", ["model"])
QUEUE_SECONDS = _histogram(
    "stillhouse_queue_seconds", "Time items wait for a model.", ["model"], _LATENCY_S
)
BATCH_ITEMS = _histogram("stillhouse_batch_items", "Items per forward pass.", ["model"], _SIZES)
COMPUTE_SECONDS = _histogram(
    "stillhouse_compute_seconds", "Duration of forward passes.", ["model"], _LATENCY_S
)
REFUSED_ITEMS = _counter(
    "stillhouse_refused_items", "Items refused before anything was computed.", ["model", "reason"]
)
OUT_OF_MEMORY = _counter(
    "stillhouse_out_of_memory", "Forward passes that did not fit into memory.", ["model"]
)
BATCH_LIMIT = _gauge(
    "stillhouse_batch_limit",
    "Largest forward pass for online calls at present, by time and memory, in items or tokens.",
    ["model"],
)
DROPPED_ITEMS = _counter(
    "stillhouse_dropped_items", "Items whose caller left while they waited.", ["model"]
)
DEVICE_SECONDS = _counter(
    "stillhouse_device_seconds",
    "Seconds the device computed for a project, by its share of every batch.",
    ["project", "work", "device"],
)
DECODE_SECONDS = Histogram(
    "stillhouse_decode_seconds", "Time to decode and preprocess an image.", buckets=_SHORT_S
)
ENCODE_SECONDS = Histogram(
    "stillhouse_encode_seconds", "Time to write a call's results.", buckets=_SHORT_S
)
CACHE_LOOKUPS = _counter("stillhouse_cache_lookups", "Look-ups in a cache.", ["cache", "outcome"])

JOBS = _gauge("stillhouse_jobs", "Jobs in the database that have not ended.", ["state"])
JOBS_ENDED = _counter("stillhouse_jobs_ended", "Jobs this gateway saw end.", ["kind", "state"])
STAGE_SECONDS = _histogram(
    "stillhouse_stage_seconds", "Duration of job stages.", ["kind", "stage", "outcome"], _LONG_S
)
TRAINING_RUNS = _gauge("stillhouse_training_runs", "Training runs that train or wait.", ["state"])
SERVICE = Info("stillhouse_service", "What runs here.")

_device = "cpu"


def start(service: str, version: str, device: str, settings: ServiceSettings) -> None:
    """Take the service's identity and limits, and serve the metrics page in a thread, unless its
    port is 0. Raises OSError where the port is taken."""
    global _device
    _device = device
    _NAMES["project"].limit = settings.metrics_projects
    _NAMES["model"].limit = settings.metrics_models
    SERVICE.info({"service": service, "version": version, "device": device})
    if settings.metrics_port:
        start_http_server(settings.metrics_port, addr=settings.host)


def look_up(cache: str, hits: int, misses: int) -> None:
    """Count look-ups in a cache."""
    CACHE_LOOKUPS.labels(cache, "hit").inc(hits)
    CACHE_LOOKUPS.labels(cache, "miss").inc(misses)


def refuse(model: str, items: int, *, reason: str) -> None:
    """Count items that were refused; `reason` is that of the error, such as `OVERLOADED`."""
    REFUSED_ITEMS.labels(model, reason).inc(items)


def charge(project: str, seconds: float, *, work: str, device: str = "") -> None:
    """Count device seconds for a project; `work` is `online`, `job` or `training`. Without a
    `device` it is the service's."""
    DEVICE_SECONDS.labels(project or NOBODY, work, device or _device).inc(seconds)


def forget_model(name: str) -> None:
    """End the series of a model that was unloaded, and let another take its place."""
    for one in (QUEUE_ITEMS, QUEUE_SECONDS, BATCH_ITEMS, BATCH_LIMIT, COMPUTE_SECONDS):
        one.metric.remove_by_labels({"model": name})
    for counter in (REFUSED_ITEMS, DROPPED_ITEMS, OUT_OF_MEMORY):
        counter.metric.remove_by_labels({"model": name})
    _NAMES["model"].forget(name)
