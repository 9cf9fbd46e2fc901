"""Traces, where an OpenTelemetry collector is set; everywhere else these calls do nothing.

OpenTelemetry itself is the optional extra `otel` and is imported by `tracing_otel` alone. We write
spans and headers ourselves: the library's interceptors for grpc.aio do not see `abort_with_status`,
with which our calls fail, and turn a stream's call into a generator that cannot be cancelled.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Literal, Protocol

from services.common.errors import Precondition
from services.common.settings import ServiceSettings

Attributes = Mapping[str, str | int | float | bool]
Kind = Literal["internal", "server", "client"]
Trace = object
"""Where a span hangs in its trace; what it is, only the tracer knows."""


class Span(Protocol):
    """A piece of work that has begun."""

    def set(self, attributes: Attributes) -> None:
        """Add attributes."""

    def fail(self, why: str) -> None:
        """Say that the work failed."""

    def end(self) -> None:
        """End it."""


class Tracer(Protocol):
    """What makes spans; see `tracing_otel`."""

    def enter(self, metadata: Mapping[str, str]) -> None:
        """Hang the spans of this task below those of whoever sent the metadata."""

    def leave(self) -> None:
        """Let the spans of this task begin traces of their own."""

    def begin(self, name: str, kind: Kind, attributes: Attributes, seed: str) -> Span:
        """Begin a span, below which the further ones of this task hang until it ends."""

    def record(
        self, name: str, trace: Trace, start_ns: int, end_ns: int, attributes: Attributes
    ) -> None:
        """Add a span that is over."""

    def here(self) -> Trace | None:
        """Return where a span of this task would hang, None in no trace."""

    def outgoing(self) -> tuple[tuple[str, str], ...]:
        """Return the headers that take the trace on."""

    def stop(self, timeout_s: float) -> None:
        """Send what is left. Blocking."""


class _NoSpan:
    def set(self, attributes: Attributes) -> None: ...

    def fail(self, why: str) -> None: ...

    def end(self) -> None: ...


_NO_SPAN = _NoSpan()
_NONE: Attributes = {}
_tracer: Tracer | None = None


def start(service: str, version: str, settings: ServiceSettings) -> None:
    """Send traces from now on, where `otel_endpoint` is set. Raises Precondition where it is and
    the extra is not installed."""
    if not settings.otel_endpoint:
        return
    try:
        from services.common.tracing_otel import OtelTracer
    except ImportError as error:
        raise Precondition(
            f"otel_endpoint is set, but OpenTelemetry is not here ({error}); "
            "install it with `pip install 'stillhouse[otel]'`"
        ) from error
    use(OtelTracer.to_collector(service, version, settings))


def use(tracer: Tracer | None) -> None:
    """Make spans with this tracer; None makes none."""
    global _tracer
    _tracer = tracer


def stop(timeout_s: float = 5.0) -> None:
    """Send what is left and end. Blocking."""
    if _tracer is not None:
        _tracer.stop(timeout_s)
    use(None)


def is_on() -> bool:
    """Return whether spans are made at all."""
    return _tracer is not None


def enter(metadata: Mapping[str, str]) -> None:
    """Hang the spans of this task below those of the call that sent the metadata."""
    if _tracer is not None:
        _tracer.enter(metadata)


def leave() -> None:
    """Let the spans of this task begin traces of their own."""
    if _tracer is not None:
        _tracer.leave()


def begin(
    name: str, attributes: Attributes = _NONE, *, kind: Kind = "internal", seed: str = ""
) -> Span:
    """Begin a span that the caller ends. With a `seed`, outside any trace, the trace's id follows
    from it, so that all spans of one thing meet in one trace, whichever process makes them."""
    if _tracer is None:
        return _NO_SPAN
    return _tracer.begin(name, kind, attributes, seed)


def begin_call(method: str, kind: Kind, attributes: Attributes = _NONE) -> Span:
    """Begin the span of an RPC, `package.Service/Method`."""
    if _tracer is None:
        return _NO_SPAN
    rpc = {"rpc.system.name": "grpc", "rpc.method": method}
    return begin(method, {**rpc, **attributes}, kind=kind)


def end_call(made: Span, code: str, *, failed: bool) -> None:
    """End the span of an RPC with the name of its gRPC code."""
    made.set({"rpc.response.status_code": code})
    if failed:
        made.fail(code)
    made.end()


@contextlib.contextmanager
def span(
    name: str, attributes: Attributes = _NONE, *, kind: Kind = "internal", seed: str = ""
) -> Iterator[Span]:
    """Run a block in a span; what it raises is noted and goes on."""
    made = begin(name, attributes, kind=kind, seed=seed)
    try:
        yield made
    except BaseException as error:
        made.fail(str(error) or type(error).__name__)
        raise
    finally:
        made.end()


def record(
    name: str,
    trace: Trace | None,
    started_s: float,
    ended_s: float,
    attributes: Attributes = _NONE,
) -> None:
    """Add a span that is over, by the clock of `time.perf_counter`, where `here` was in a trace."""
    if _tracer is None or trace is None:
        return
    offset_ns = time.time_ns() - time.perf_counter_ns()
    start_ns, end_ns = (int(at_s * 1e9) + offset_ns for at_s in (started_s, ended_s))
    _tracer.record(name, trace, start_ns, end_ns, attributes)


def here() -> Trace | None:
    """Return where this task is in its trace, for `record`; None in none."""
    return None if _tracer is None else _tracer.here()


def outgoing() -> tuple[tuple[str, str], ...]:
    """Return the metadata that takes the trace to another service."""
    return () if _tracer is None else _tracer.outgoing()
