"""Prometheus metrics that every service exports."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram, start_http_server

RPC_SECONDS = Histogram("stillhouse_rpc_seconds", "Duration of RPCs.", ["method", "code"])
QUEUE_ITEMS = Gauge("stillhouse_queue_items", "Items waiting for a model.", ["model"])
QUEUE_SECONDS = Histogram("stillhouse_queue_seconds", "Time items wait for a model.", ["model"])
BATCH_ITEMS = Histogram(
    "stillhouse_batch_items",
    "Items per forward pass.",
    ["model"],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128),
)
COMPUTE_SECONDS = Histogram("stillhouse_compute_seconds", "Duration of forward passes.", ["model"])
DROPPED_ITEMS = Counter(
    "stillhouse_dropped_items", "Items whose caller left while they waited.", ["model"]
)
REFUSED_ITEMS = Counter(
    "stillhouse_refused_items", "Items refused before anything was computed.", ["model", "reason"]
)
OUT_OF_MEMORY = Counter(
    "stillhouse_out_of_memory", "Forward passes that did not fit into memory.", ["model"]
)
BATCH_LIMIT = Gauge(
    "stillhouse_batch_limit",
    "Largest forward pass for online calls at present, by time and memory, in items or tokens.",
    ["model"],
)
CACHE_LOOKUPS = Counter("stillhouse_cache_lookups", "Cache look-ups.", ["outcome"])


def serve(host: str, port: int) -> None:
    """Serve the metrics page in a thread; port 0 serves none."""
    if port:
        start_http_server(port, addr=host)
