"""The table of a server's methods: all are found, each wrapped once, in order."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.empty_pb2 import Empty
from stillhouse.common.v1 import info_pb2, info_pb2_grpc

from services.common.methods import Methods, Wrap

SERVICE = "stillhouse.common.v1.InfoService"


class Info(info_pb2_grpc.InfoServiceServicer):
    async def GetInfo(self, request: Any, context: Any) -> info_pb2.GetInfoResponse:
        return info_pb2.GetInfoResponse(service="one")


def noting(seen: list[str], name: str) -> Wrap:
    """A wrap that notes when it is made and when it is passed."""

    def wrap(handler: Any, method: str) -> Any:
        seen.append(f"{name} wraps {method}")

        async def handle(request: Any, context: Any) -> Any:
            seen.append(name)
            return await handler.unary_unary(request, context)

        return grpc.unary_unary_rpc_method_handler(
            handle, handler.request_deserializer, handler.response_serializer
        )

    return wrap


async def test_calls_pass_what_was_wrapped_once_and_other_methods_are_not_there() -> None:
    seen: list[str] = []
    methods = Methods([noting(seen, "outer"), noting(seen, "inner")])
    info_pb2_grpc.add_InfoServiceServicer_to_server(Info(), methods.server)
    made = [
        f"{name} wraps {SERVICE}/{at}"
        for at in ("GetInfo", "GetStats")
        for name in ("inner", "outer")
    ]
    assert seen == made
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([methods])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = info_pb2_grpc.InfoServiceStub(channel)  # type: ignore[no-untyped-call]
            for _ in range(2):
                reply = await stub.GetInfo(info_pb2.GetInfoRequest(), timeout=10)
                assert reply.service == "one"
            assert seen[4:] == ["outer", "inner"] * 2
            for method in (f"/{SERVICE}/GetNothing", f"/{SERVICE}", "/", "/x.Y/GetInfo"):
                call = channel.unary_unary(method, Empty.SerializeToString, Empty.FromString)
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call(Empty(), timeout=10)
                assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    finally:
        await server.stop(None)
