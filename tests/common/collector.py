"""An OpenTelemetry collector in this process: a real gRPC server that keeps the spans it gets."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


@dataclass(frozen=True)
class Seen:
    """One span, ids in hexadecimal."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: int
    failed: bool
    attributes: dict[str, Any]
    process: str
    """Instance id of the process that made it."""
    service: str


@dataclass
class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps spans."""

    address: str = ""
    spans: list[Seen] = field(default_factory=list)

    def Export(self, request: Any, context: Any) -> Any:
        for batch in request.resource_spans:
            resource = _values(batch.resource.attributes)
            for scope in batch.scope_spans:
                self.spans += [_seen(span, resource) for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()

    def wait(self, done: Callable[[list[Seen]], bool], *, timeout_s: float = 30.0) -> list[Seen]:
        """Return the spans once they are all there. Raises AssertionError."""
        until_s = time.monotonic() + timeout_s
        while not done(self.spans):
            assert time.monotonic() < until_s, [span.name for span in self.spans]
            time.sleep(0.05)
        return list(self.spans)


@contextmanager
def collector() -> Iterator[Collector]:
    """Run a collector on a free port."""
    server = grpc.server(ThreadPoolExecutor(2))
    found = Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(found, server)
    found.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield found
    finally:
        server.stop(None)


def _seen(span: Any, resource: dict[str, Any]) -> Seen:
    return Seen(
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        kind=span.kind,
        failed=span.status.code == 2,
        attributes=_values(span.attributes),
        process=resource["service.instance.id"],
        service=resource["service.name"],
    )


def _values(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}
