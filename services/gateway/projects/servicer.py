"""ProjectService: settings of projects, and their end."""

from __future__ import annotations

import asyncio

from stillhouse.gateway.v1 import projects_pb2 as pb
from stillhouse.gateway.v1 import projects_pb2_grpc

from services.common import names, pages
from services.common.errors import InvalidInput
from services.common.interceptors import Context
from services.common.outbound import Addresses
from services.gateway import paging
from services.gateway.projects import records
from services.gateway.projects.chores import Chores
from services.gateway.store import Store

_LIST = "projects"
"""What tokens of the list of projects are bound to."""


class ProjectServicer(projects_pb2_grpc.ProjectServiceServicer):
    """The RPCs of ProjectService."""

    def __init__(self, store: Store, addresses: Addresses, chores: Chores) -> None:
        self._store, self._addresses, self._chores = store, addresses, chores

    async def CreateProject(
        self, request: pb.CreateProjectRequest, context: Context
    ) -> pb.CreateProjectResponse:
        names.check_id(request.project_id, field="project_id")
        records.check(request.project, self._addresses)
        made = await asyncio.to_thread(records.create, self._store, request)
        return pb.CreateProjectResponse(project=made)

    async def GetProject(
        self, request: pb.GetProjectRequest, context: Context
    ) -> pb.GetProjectResponse:
        (project,) = names.parse(request.name)
        found = await asyncio.to_thread(records.get, self._store, project)
        return pb.GetProjectResponse(project=found)

    async def ListProjects(
        self, request: pb.ListProjectsRequest, context: Context
    ) -> pb.ListProjectsResponse:
        size = pages.check_size(request.page_size)
        after = paging.unseal(request.page_token, _LIST)
        found = await asyncio.to_thread(records.list_after, self._store, after, size + 1)
        token = (
            paging.seal(names.parse(found[size - 1].name)[0], _LIST) if len(found) > size else ""
        )
        return pb.ListProjectsResponse(projects=found[:size], next_page_token=token)

    async def UpdateProject(
        self, request: pb.UpdateProjectRequest, context: Context
    ) -> pb.UpdateProjectResponse:
        (project,) = names.parse(request.project.name, field="project.name")
        records.check(request.project, self._addresses)
        found = await asyncio.to_thread(records.update, self._store, project, request)
        return pb.UpdateProjectResponse(project=found)

    async def DeleteProject(
        self, request: pb.DeleteProjectRequest, context: Context
    ) -> pb.DeleteProjectResponse:
        (project,) = names.parse(request.name)
        row = await asyncio.to_thread(records.begin_deletion, self._store, project)
        self._chores.wake()
        return pb.DeleteProjectResponse(deletion=records.deletion_message(row))

    async def GetProjectDeletion(
        self, request: pb.GetProjectDeletionRequest, context: Context
    ) -> pb.GetProjectDeletionResponse:
        name, _, last = request.name.rpartition("/")
        if last != "deletion":
            raise InvalidInput("name: is not of the form projects/*/deletion", field="name")
        (project,) = names.parse(name)
        row = await asyncio.to_thread(records.deletion, self._store, project)
        return pb.GetProjectDeletionResponse(deletion=records.deletion_message(row))
