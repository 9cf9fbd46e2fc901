"""ModelService: shows a project's teachers, encoders and concept sets, as their services tell."""

from __future__ import annotations

from stillhouse.concepts.v1 import concepts_pb2
from stillhouse.gateway.v1 import models_pb2 as pb
from stillhouse.gateway.v1 import models_pb2_grpc
from stillhouse.teacher.v1 import teacher_pb2

from services.common.interceptors import Context
from services.common.names import check_id, join
from services.gateway.peers import Peers


class ModelServicer(models_pb2_grpc.ModelServiceServicer):
    """The RPCs of ModelService."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    async def ListTeachers(
        self, request: pb.ListTeachersRequest, context: Context
    ) -> pb.ListTeachersResponse:
        check_id(request.project, field="project")
        reply = await self._peers.ask(
            self._peers.teacher.ListModels,
            teacher_pb2.ListModelsRequest(
                project=request.project,
                page_size=request.page_size,
                page_token=request.page_token,
            ),
        )
        return pb.ListTeachersResponse(models=reply.models, next_page_token=reply.next_page_token)

    async def ListProjectEncoders(
        self, request: pb.ListProjectEncodersRequest, context: Context
    ) -> pb.ListProjectEncodersResponse:
        check_id(request.project, field="project")
        reply = await self._peers.ask(
            self._peers.concepts.ListEncoders,
            concepts_pb2.ListEncodersRequest(project=request.project),
        )
        return pb.ListProjectEncodersResponse(encoders=reply.encoders)

    async def ListProjectConceptSets(
        self, request: pb.ListProjectConceptSetsRequest, context: Context
    ) -> pb.ListProjectConceptSetsResponse:
        check_id(request.project, field="project")
        reply = await self._peers.ask(
            self._peers.concepts.ListConceptSets,
            concepts_pb2.ListConceptSetsRequest(project=request.project),
        )
        return pb.ListProjectConceptSetsResponse(concept_sets=reply.concept_sets)

    async def CreateProjectConceptSet(
        self, request: pb.CreateProjectConceptSetRequest, context: Context
    ) -> pb.CreateProjectConceptSetResponse:
        check_id(request.project, field="project")
        check_id(request.concept_set_id, field="concept_set_id")
        concept_set = concepts_pb2.ConceptSet(
            name=join(request.project, "conceptSets", request.concept_set_id),
            words=request.words,
        )
        reply = await self._peers.ask(
            self._peers.concepts.CreateConceptSet,
            concepts_pb2.CreateConceptSetRequest(
                concept_set=concept_set, request_id=request.request_id
            ),
        )
        return pb.CreateProjectConceptSetResponse(concept_set=reply.concept_set)
