"""The methods of a server: one table for all of them, and each wrapped once, before any call.

gRPC's asyncio server waits for the next call of every registered method by itself and looks through
all of them when one comes, so that each call costs more the more methods there are: with a hundred,
a fifth of a small call. What it finds by a generic handler it waits for in one place. Interceptors
cost every call a coroutine each, and need none: what they put before a handler never changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import grpc
import grpc.aio

Wrap = Callable[[Any, str], Any]
"""Makes a handler of a handler and its method, `package.Service/Method`."""


class Methods(grpc.GenericRpcHandler):
    """Takes what generated code adds to a server. `wraps` stand before every handler, the outermost
    first."""

    def __init__(self, wraps: Iterable[Wrap]) -> None:
        self._wraps = list(wraps)[::-1]
        self._handlers: dict[str, Any] = {}

    @property
    def server(self) -> grpc.aio.Server:
        """This, as the functions of generated code take it."""
        return cast("grpc.aio.Server", self)

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Add the methods of a service; generated code calls it."""
        for name, handler in handlers.items():
            method = f"{service}/{name}"
            for wrap in self._wraps:
                handler = wrap(handler, method)
            self._handlers[f"/{method}"] = handler

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Do nothing: generated code hands the same methods in twice."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Return the handler of a call; None for a method that is not there."""
        return self._handlers.get(handler_call_details.method)
