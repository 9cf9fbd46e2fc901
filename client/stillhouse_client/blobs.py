"""Bytes of a project: reports, exported files, images."""

from __future__ import annotations

import hashlib
from pathlib import Path

from stillhouse.gateway.v1 import students_pb2 as pb
from stillhouse.gateway.v1 import students_pb2_grpc

from stillhouse_client.errors import ServerFault
from stillhouse_client.transport import Transport

_READ_S = 600.0


class AsyncBlobs:
    """Reads blobs by digest and checks what came."""

    def __init__(self, transport: Transport, project: str) -> None:
        self._transport = transport
        self._project = project
        self._stub = students_pb2_grpc.BlobServiceStub(transport.channel)

    async def read(self, digest: str) -> bytes:
        """Return a blob's bytes. Raises NotFound; ServerFault where they are not the digest's."""
        request = pb.ReadBlobRequest(project=self._project, digest=digest)
        stream = self._transport.stream(self._stub.ReadBlob, request, timeout_s=_READ_S)
        data = b"".join([response.chunk async for response in stream])
        if hashlib.sha256(data).hexdigest() != digest:
            raise ServerFault(f"blob {digest[:12]} arrived damaged", hint="try again")
        return data

    async def save(self, digest: str, path: Path) -> int:
        """Write a blob to `path`, which appears only once complete; return its size in bytes."""
        request = pb.ReadBlobRequest(project=self._project, digest=digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        part, check = path.with_name(path.name + ".part"), hashlib.sha256()
        with part.open("wb") as file:
            async for response in self._transport.stream(
                self._stub.ReadBlob, request, timeout_s=_READ_S
            ):
                check.update(response.chunk)
                file.write(response.chunk)
        if check.hexdigest() != digest:
            part.unlink()
            raise ServerFault(f"blob {digest[:12]} arrived damaged", hint="try again")
        part.replace(path)
        return path.stat().st_size
