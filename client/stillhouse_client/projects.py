"""Projects: their settings, and their end."""

from __future__ import annotations

import asyncio
import builtins
import time

from stillhouse.gateway.v1 import projects_pb2 as pb
from stillhouse.gateway.v1 import projects_pb2_grpc

from stillhouse_client.errors import DeadlinePassed
from stillhouse_client.pages import PAGE_SIZE, collect
from stillhouse_client.transport import Transport, new_request_id

_POLL_S = 0.5


class AsyncProjects:
    """What a client can do with projects; names are ids (`fruit`) or full (`projects/fruit`)."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._stub = projects_pb2_grpc.ProjectServiceStub(transport.channel)

    async def create(
        self,
        project_id: str,
        *,
        retention: pb.Retention | None = None,
        webhooks: builtins.list[pb.Webhook] | None = None,
    ) -> pb.Project:
        """Create a project. Secrets that are made for webhooks are in the answer, this once."""
        request = pb.CreateProjectRequest(
            project_id=project_id,
            project=pb.Project(retention=retention, webhooks=webhooks or []),
            request_id=new_request_id(),
        )
        return (await self._transport.call(self._stub.CreateProject, request)).project

    async def get(self, name: str) -> pb.Project:
        """Return a project. Raises NotFound."""
        request = pb.GetProjectRequest(name=_full(name))
        return (await self._transport.call(self._stub.GetProject, request)).project

    async def list(self) -> builtins.list[pb.Project]:
        """Return all projects, by name."""

        async def fetch(token: str) -> tuple[builtins.list[pb.Project], str]:
            request = pb.ListProjectsRequest(page_size=PAGE_SIZE, page_token=token)
            reply = await self._transport.call(self._stub.ListProjects, request)
            return builtins.list(reply.projects), reply.next_page_token

        return await collect(fetch)

    async def update(
        self,
        name: str,
        *,
        retention: pb.Retention | None = None,
        webhooks: builtins.list[pb.Webhook] | None = None,
    ) -> pb.Project:
        """Change what is given: the retention, or the whole list of webhooks."""
        request = pb.UpdateProjectRequest(
            project=pb.Project(name=_full(name), retention=retention, webhooks=webhooks or []),
            request_id=new_request_id(),
        )
        given = {"retention": retention, "webhooks": webhooks}
        request.update_mask.paths.extend(one for one, value in given.items() if value is not None)
        return (await self._transport.call(self._stub.UpdateProject, request)).project

    async def delete(self, name: str, *, timeout_s: float = 600.0) -> pb.ProjectDeletion:
        """Delete a project with all its data, and return what was removed once all is gone.

        Raises NotFound, and DeadlinePassed where it takes longer; it goes on all the same.
        """
        request = pb.DeleteProjectRequest(name=_full(name), request_id=new_request_id())
        found = (await self._transport.call(self._stub.DeleteProject, request)).deletion
        until_s = time.monotonic() + timeout_s
        while not found.HasField("end_time"):
            if time.monotonic() > until_s:
                why = f": {found.waiting_for}" if found.waiting_for else ""
                raise DeadlinePassed(f"{name} is still being deleted{why}")
            await asyncio.sleep(_POLL_S)
            found = await self.deletion(name)
        return found

    async def deletion(self, name: str) -> pb.ProjectDeletion:
        """Return the newest deletion of a project. Raises NotFound."""
        request = pb.GetProjectDeletionRequest(name=f"{_full(name)}/deletion")
        return (await self._transport.call(self._stub.GetProjectDeletion, request)).deletion


def _full(name: str) -> str:
    return name if name.startswith("projects/") else f"projects/{name}"
