"""Which certificates may call: a certificate of the right authority may still be somebody else's,
as that of a client which is to reach the gateway alone."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import grpc

_FOR_ALL = ("grpc.health.",)
_NAMES = ("x509_common_name", "x509_subject_alternative_name")
_KINDS = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}


class KnownCallers:
    """Refuses calls from certificates without one of these names with PERMISSION_DENIED."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = frozenset(name.encode() for name in names)

    def wrap(self, handler: Any, method: str) -> Any:
        """Return a handler that asks for the certificate first."""
        if method.startswith(_FOR_ALL):
            return handler
        streams = handler.request_streaming, handler.response_streaming
        kind, make = _KINDS[streams]
        inner = getattr(handler, kind)
        guarded = self._streaming(inner) if streams[1] else self._unary(inner)
        return make(guarded, handler.request_deserializer, handler.response_serializer)

    def _unary(self, inner: Any) -> Any:
        async def handle(request: Any, context: Any) -> Any:
            await self._check(context)
            return await inner(request, context)

        return handle

    def _streaming(self, inner: Any) -> Any:
        async def handle(request: Any, context: Any) -> Any:
            await self._check(context)
            async for response in inner(request, context):
                yield response

        return handle

    async def _check(self, context: Any) -> None:
        shown = context.auth_context()
        if not any(one in self._names for name in _NAMES for one in shown.get(name, ())):
            said = "this certificate may not call this service; its name is not in tls_clients"
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, said)
