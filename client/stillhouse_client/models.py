"""Teachers, encoders and concept sets of a project."""

from __future__ import annotations

from collections.abc import Sequence

from stillhouse.concepts.v1 import concepts_pb2
from stillhouse.gateway.v1 import models_pb2 as pb
from stillhouse.gateway.v1 import models_pb2_grpc
from stillhouse.teacher.v1 import teacher_pb2

from stillhouse_client.pages import PAGE_SIZE, collect
from stillhouse_client.transport import Transport, new_request_id


class AsyncModels:
    """What a client can ask about models."""

    def __init__(self, transport: Transport, project: str) -> None:
        self._transport = transport
        self._project = project
        self._stub = models_pb2_grpc.ModelServiceStub(transport.channel)

    async def teachers(self) -> Sequence[teacher_pb2.Model]:
        """Return the teachers, by name."""

        async def fetch(token: str) -> tuple[list[teacher_pb2.Model], str]:
            request = pb.ListTeachersRequest(
                project=self._project, page_size=PAGE_SIZE, page_token=token
            )
            page = await self._transport.call(self._stub.ListTeachers, request)
            return [*page.models], page.next_page_token

        return await collect(fetch)

    async def encoders(self) -> Sequence[concepts_pb2.Encoder]:
        """Return the encoders, by name."""
        request = pb.ListProjectEncodersRequest(project=self._project)
        return (await self._transport.call(self._stub.ListProjectEncoders, request)).encoders

    async def concept_sets(self) -> Sequence[concepts_pb2.ConceptSet]:
        """Return the concept sets, without their words."""
        request = pb.ListProjectConceptSetsRequest(project=self._project)
        response = await self._transport.call(self._stub.ListProjectConceptSets, request)
        return response.concept_sets

    async def create_concept_set(
        self, concept_set_id: str, words: Sequence[str], *, request_id: str = ""
    ) -> concepts_pb2.ConceptSet:
        """Store a concept set of your own words."""
        request = pb.CreateProjectConceptSetRequest(
            project=self._project,
            concept_set_id=concept_set_id,
            words=words,
            request_id=request_id or new_request_id(),
        )
        response = await self._transport.call(self._stub.CreateProjectConceptSet, request)
        return response.concept_set
