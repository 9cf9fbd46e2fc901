"""A gateway's own parts behind real gRPC and real HTTP; what it calls is away."""

from __future__ import annotations

import asyncio
import io
import json
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import httpx2
from google.protobuf import json_format
from google.protobuf.message import Message
from grpc_reflection.v1alpha import reflection
from stillhouse.common.v1 import info_pb2_grpc

from services.common.interceptors import ErrorInterceptor
from services.common.server import App, InfoServicer
from services.gateway.assembly import Gateway
from services.gateway.http.edge import Edge
from services.gateway.settings import GatewaySettings
from tests.gateway.parts import make_photo

ROOT = "/v1/projects/default"
JSON = {"Content-Type": "application/json"}
MAX_ARCHIVE = 1 << 20


@dataclass
class World:
    """A running gateway, asked both ways."""

    gateway: Gateway
    channel: grpc.aio.Channel
    address: str
    http: httpx2.AsyncClient
    edge: Edge

    async def get(self, path: str, **query: Any) -> httpx2.Response:
        return await self.http.get(f"{ROOT}{path}", params=query)

    async def post(self, path: str, body: object) -> httpx2.Response:
        return await self.http.post(f"{ROOT}{path}", content=json.dumps(body), headers=JSON)

    async def add_dataset(self, name: str = "pics") -> list[str]:
        """Upload photos, make a dataset of them and return their digests."""
        answer = await self.http.post(f"{ROOT}/archives", content=make_archive())
        archive = answer.json()["archive"]
        created = await self.post("/datasets", {"datasetId": name, "archive": archive})
        assert created.status_code == 200, created.text
        while True:
            found = (await self.get(f"/datasets/{name}")).json()["dataset"]
            if found["state"] != "DATASET_STATE_CREATING":
                break
            await asyncio.sleep(0.02)
        assert found["state"] == "DATASET_STATE_READY", found
        items = (await self.get(f"/datasets/{name}/items")).json()["items"]
        return [item["digest"] for item in items]


def make_archive() -> bytes:
    """A tar of two classes of four photos, one with an unfriendly name."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for number in range(8):
            data = make_photo(number, (120, 90))
            name = "<img src=x>.jpg" if number == 0 else f"{number}.jpg"
            info = tarfile.TarInfo(f"{'ab'[number % 2]}/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def as_json(message: Message) -> Any:
    """What the edge must print of a message."""
    return json_format.MessageToDict(message, always_print_fields_with_no_presence=True)


@asynccontextmanager
async def edge_world(folder: Path, **settings: Any) -> AsyncIterator[World]:
    """Run a gateway with its stores in `folder`, without its engine."""
    made = GatewaySettings(
        port=0,
        http_port=0,
        drain_s=2,
        max_archive_bytes=MAX_ARCHIVE,
        database_url=f"sqlite:///{folder}/gateway.db",
        blob_url=str(folder / "blobs"),
        **{"teacher_address": "127.0.0.1:9", **settings},
    )
    gateway = Gateway(made)
    edge = Edge(made)
    server = grpc.aio.server(interceptors=[ErrorInterceptor(), gateway.interceptor])
    reflection.enable_server_reflection(gateway.register(server), server)
    app = App("gateway", made, gateway.register)
    info_pb2_grpc.add_InfoServiceServicer_to_server(InfoServicer(app), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    edge.bound("127.0.0.1", port)
    await edge.start()
    address = f"http://127.0.0.1:{edge.port}"
    try:
        async with (
            grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
            httpx2.AsyncClient(base_url=address, trust_env=False, timeout=20) as http,
        ):
            yield World(gateway, channel, f"127.0.0.1:{port}", http, edge)
    finally:
        await gateway.feed.close()
        await edge.drain()
        await server.stop(0.2)
        await edge.stop()
        await gateway.runner.stop()
        await gateway.close_access()
        await gateway.cache.close()
        await gateway.peers.close()
        gateway.store.close()
