"""Spans by OpenTelemetry's SDK, sent to a collector over gRPC. Needs the extra `otel`; everything
else calls `tracing`."""

from __future__ import annotations

import contextvars
import hashlib
import os
import socket
from collections.abc import Mapping

from opentelemetry.context import Context, attach, get_current
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import (
    Span,
    SpanKind,
    Status,
    StatusCode,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from services.common.settings import ServiceSettings
from services.common.tracing import Attributes, Kind, Trace

_EXPORT_S = 5.0
_MOST_SAID = 200
_KINDS = {"internal": SpanKind.INTERNAL, "server": SpanKind.SERVER, "client": SpanKind.CLIENT}
_seed: contextvars.ContextVar[str] = contextvars.ContextVar("trace_seed", default="")


class _Ids(RandomIdGenerator):
    """Random ids, but a trace with a seed has the one that follows from it."""

    def generate_trace_id(self) -> int:
        seed = _seed.get()
        if not seed:
            return super().generate_trace_id()
        return int.from_bytes(hashlib.sha256(seed.encode()).digest()[:16], "big") or 1


class OtelSpan:
    """A span, in whose place its task's spans hang until it ends."""

    def __init__(self, span: Span, before: Context) -> None:
        self._span, self._before = span, before
        attach(set_span_in_context(span, before))

    def set(self, attributes: Attributes) -> None:
        """Add attributes."""
        self._span.set_attributes(attributes)

    def fail(self, why: str) -> None:
        """Say that the work failed."""
        self._span.set_status(Status(StatusCode.ERROR, why[:_MOST_SAID]))

    def end(self) -> None:
        """End it. Not by the token of `attach`: a stream may be closed from another context."""
        self._span.end()
        attach(self._before)


class OtelTracer:
    """Makes the spans of this process; a provider of its own, beside whatever else is set up."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("stillhouse")
        self._headers = TraceContextTextMapPropagator()

    @classmethod
    def to_collector(cls, service: str, version: str, settings: ServiceSettings) -> OtelTracer:
        """Return a tracer whose spans go to `otel_endpoint` in the background."""
        provider = make_provider(service, version, settings.otel_sample_ratio)
        address = settings.otel_endpoint
        exporter = OTLPSpanExporter(
            endpoint=address.removeprefix("http://"),
            insecure=not address.startswith("https://"),
            timeout=_EXPORT_S,
        )
        provider.add_span_processor(BatchSpanProcessor(exporter))
        return cls(provider)

    def enter(self, metadata: Mapping[str, str]) -> None:
        """Hang the spans of this task below those of whoever sent the metadata."""
        attach(self._headers.extract(metadata, Context()))

    def leave(self) -> None:
        """Let the spans of this task begin traces of their own."""
        attach(Context())

    def begin(self, name: str, kind: Kind, attributes: Attributes, seed: str) -> OtelSpan:
        """Begin a span; a `seed` counts outside any trace alone."""
        before = get_current()
        token = _seed.set(seed)
        try:
            span = self._tracer.start_span(name, before, kind=_KINDS[kind], attributes=attributes)
        finally:
            _seed.reset(token)
        return OtelSpan(span, before)

    def record(
        self, name: str, trace: Trace, start_ns: int, end_ns: int, attributes: Attributes
    ) -> None:
        """Add a span that is over."""
        assert isinstance(trace, Context)
        span = self._tracer.start_span(name, trace, attributes=attributes, start_time=start_ns)
        span.end(end_ns)

    def here(self) -> Context | None:
        """Return where a span of this task would hang; None where nobody would see it."""
        context = get_current()
        return context if get_current_span(context).is_recording() else None

    def outgoing(self) -> tuple[tuple[str, str], ...]:
        """Return the W3C headers of this task's place in its trace."""
        headers: dict[str, str] = {}
        self._headers.inject(headers)
        return tuple(headers.items())

    def stop(self, timeout_s: float) -> None:
        """Send what is left. Blocking."""
        self._provider.force_flush(int(timeout_s * 1000))
        self._provider.shutdown()


def make_provider(service: str, version: str, sample_ratio: float) -> TracerProvider:
    """Return a provider that sends nothing yet; callers decide about their traces themselves, the
    rest is sampled."""
    resource = Resource.create(
        {
            "service.namespace": "stillhouse",
            "service.name": service,
            "service.version": version,
            "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
        }
    )
    return TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(sample_ratio)),
        resource=resource,
        id_generator=_Ids(),
        shutdown_on_exit=False,
    )
