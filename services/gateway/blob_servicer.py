"""BlobService: streams a blob of a project."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from stillhouse.gateway.v1 import students_pb2 as pb
from stillhouse.gateway.v1 import students_pb2_grpc

from services.common import names
from services.common.blobs import CHUNK_BYTES, BlobStore, check_digest
from services.common.interceptors import Context


class BlobServicer(students_pb2_grpc.BlobServiceServicer):
    """Serves BlobService; a reader checks the digest of what it got."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs

    async def ReadBlob(
        self, request: pb.ReadBlobRequest, context: Context
    ) -> AsyncIterator[pb.ReadBlobResponse]:
        project = names.check_id(request.project, field="project")
        digest = check_digest(request.digest)
        file = await asyncio.to_thread(self._blobs.open, project, digest)
        try:
            while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
                yield pb.ReadBlobResponse(chunk=chunk)
        finally:
            await asyncio.to_thread(file.close)
