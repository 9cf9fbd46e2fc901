"""The async client: one channel, one project, six groups of calls."""

from __future__ import annotations

from types import TracebackType

from stillhouse.common.v1 import info_pb2

from stillhouse_client.access import AsyncAccess
from stillhouse_client.blobs import AsyncBlobs
from stillhouse_client.certificates import Certificates
from stillhouse_client.datasets import AsyncDatasets
from stillhouse_client.jobs import AsyncJobs
from stillhouse_client.models import AsyncModels
from stillhouse_client.names import DEFAULT_PROJECT
from stillhouse_client.projects import AsyncProjects
from stillhouse_client.students import AsyncStudents
from stillhouse_client.transport import DEFAULT_ADDRESS, Transport


class AsyncClient:
    """A client of a Stillhouse gateway.

    Resources are the generated messages of `stillhouse.*.v1`; errors are those of
    `stillhouse_client.errors`. Use it as `async with AsyncClient() as client:`.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        project: str = DEFAULT_PROJECT,
        timeout_s: float = 30.0,
        retry_s: float = 10.0,
        certificates: Certificates | None = None,
        key: str = "",
    ) -> None:
        """Connect lazily to a gateway at `host:port` or `dns:///name:port`; without certificates in
        plain text. Without a `key`, that of STILLHOUSE_API_KEY or the one of `stillhouse login` is
        sent, where there is one; in plain text beyond loopback with a warning."""
        self._transport = Transport(
            address, timeout_s=timeout_s, retry_s=retry_s, certificates=certificates, key=key
        )
        self.address = address
        self.project = project
        self.projects = AsyncProjects(self._transport)
        self.datasets = AsyncDatasets(self._transport, project)
        self.jobs = AsyncJobs(self._transport, project)
        self.students = AsyncStudents(self._transport, project)
        self.models = AsyncModels(self._transport, project)
        self.blobs = AsyncBlobs(self._transport, project)
        self.access = AsyncAccess(self._transport, project)

    async def info(self) -> info_pb2.GetInfoResponse:
        """Return the gateway's identity and limits."""
        return await self._transport.info()

    async def stats(self, *, include_peers: bool = True) -> info_pb2.GetStatsResponse:
        """Return the figures of the gateway and of every service process behind it; two answers
        some seconds apart give rates."""
        return await self._transport.stats(include_peers=include_peers)

    async def close(self) -> None:
        """Close the connection."""
        await self._transport.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()
