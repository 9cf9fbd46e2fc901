"""The trace of the calling program, where it has one: calls to the gateway carry it on."""

from __future__ import annotations

import sys


def headers() -> tuple[tuple[str, str], ...]:
    """Return the W3C headers of the span that runs; none where the program does not trace.

    A program that traces has imported OpenTelemetry itself, so nothing is imported for the others.
    """
    if "opentelemetry.trace" not in sys.modules:
        return ()
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    found: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(found)
    return tuple(found.items())
