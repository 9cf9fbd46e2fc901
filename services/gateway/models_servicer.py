"""ModelService: shows a project's teachers, encoders and concept sets, as their services tell, and
tries language models."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator

import grpc.aio
from google.rpc import status_pb2
from stillhouse.common.v1 import items_pb2
from stillhouse.concepts.v1 import concepts_pb2
from stillhouse.gateway.v1 import models_pb2 as pb
from stillhouse.gateway.v1 import models_pb2_grpc
from stillhouse.teacher.v1 import teacher_pb2

from services.common.blobs import BlobStore
from services.common.channels import to_error
from services.common.errors import InvalidInput, NotFound, from_status
from services.common.inputs import check_batch
from services.common.interceptors import Context
from services.common.model_records import LanguageModelRecord
from services.common.names import check_id, join, parse
from services.common.tensors import to_message
from services.gateway.image_embeddings import ImageEmbeddings
from services.gateway.jobs.language_specs import check_sampling
from services.gateway.paging import seal, unseal
from services.gateway.peers import Peers
from services.gateway.projects.rows import check_stays
from services.gateway.store import Store


class ModelServicer(models_pb2_grpc.ModelServiceServicer):
    """The RPCs of ModelService."""

    def __init__(
        self,
        store: Store,
        peers: Peers,
        blobs: BlobStore,
        embeddings: ImageEmbeddings,
        *,
        max_batch_items: int,
    ) -> None:
        self._store, self._peers, self._blobs = store, peers, blobs
        self._embeddings = embeddings
        self._max_batch_items = max_batch_items

    async def ListTeachers(
        self, request: pb.ListTeachersRequest, context: Context
    ) -> pb.ListTeachersResponse:
        check_id(request.project, field="project")
        scope = f"teachers\0{request.project}"
        reply = await self._peers.ask(
            self._peers.teacher.ListModels,
            teacher_pb2.ListModelsRequest(
                project=request.project,
                page_size=request.page_size,
                page_token=unseal(request.page_token, scope),
            ),
        )
        more = reply.next_page_token
        token = seal(more, scope) if more else ""
        return pb.ListTeachersResponse(models=reply.models, next_page_token=token)

    async def GetTeacher(
        self, request: pb.GetTeacherRequest, context: Context
    ) -> pb.GetTeacherResponse:
        project, model_id = parse(request.name, "models")
        reply = await self._peers.ask(
            self._peers.teacher.GetModel,
            teacher_pb2.GetModelRequest(name=request.name),
            timeout_s=self._peers.shard_timeout_s,
        )
        files = await asyncio.to_thread(files_of, self._blobs, project, model_id)
        return pb.GetTeacherResponse(model=reply.model, files=files)

    async def GenerateText(
        self, request: pb.GenerateTextRequest, context: Context
    ) -> AsyncIterator[pb.GenerateTextResponse]:
        parse(request.model, "models", field="model")
        if request.prompt.WhichOneof("prompt") is None:
            raise InvalidInput("prompt: is required", field="prompt")
        check_sampling(request.sampling)
        call = teacher_pb2.GenerateRequest(
            model=request.model,
            items=[teacher_pb2.GenerateItem(prompt=request.prompt)],
            sampling=request.sampling,
            stream_text=True,
        )
        generate, timeout_s = self._peers.teacher.Generate, self._peers.shard_timeout_s
        stream = self._peers.stream(generate, call, timeout_s=timeout_s)
        try:
            async for event in stream:
                kind = event.WhichOneof("event")
                if kind == "error":
                    raise from_status(event.error)
                if kind == "text":
                    yield pb.GenerateTextResponse(text=event.text)
                elif kind == "generation":
                    yield pb.GenerateTextResponse(generation=event.generation)
        except grpc.aio.AioRpcError as error:
            raise to_error(error) from None
        finally:
            stream.cancel()

    async def ListProjectEncoders(
        self, request: pb.ListProjectEncodersRequest, context: Context
    ) -> pb.ListProjectEncodersResponse:
        check_id(request.project, field="project")
        reply = await self._peers.ask(
            self._peers.concepts.ListEncoders,
            concepts_pb2.ListEncodersRequest(project=request.project),
        )
        return pb.ListProjectEncodersResponse(encoders=reply.encoders)

    async def EmbedProjectImages(
        self, request: pb.EmbedProjectImagesRequest, context: Context
    ) -> pb.EmbedProjectImagesResponse:
        parse(request.encoder, "encoders", field="encoder")
        check_batch(request.items, limit=self._max_batch_items)
        found = await self._embeddings.embed(request.encoder, request.items)
        response = pb.EmbedProjectImagesResponse(
            encoder_digest=found.encoder_digest, cached_count=found.cached
        )
        for item, outcome in zip(request.items, found.outcomes, strict=True):
            if isinstance(outcome, status_pb2.Status):
                response.results.add(item_id=item.item_id, error=outcome)
            else:
                response.results.add(item_id=item.item_id, embedding=to_message(outcome))
        return response

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
        await asyncio.to_thread(self._check_stays, request.project)
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

    def _check_stays(self, project: str) -> None:
        with self._store.read() as session:
            check_stays(session, project)


def files_of(blobs: BlobStore, project: str, model_id: str) -> pb.ProjectModelFiles | None:
    """Return what a language model that a job of the project made consists of; None for any other
    model. Blocking."""
    try:
        record = LanguageModelRecord.from_bytes(blobs.get_ref(project, f"models/{model_id}"))
    except (NotFound, InvalidInput):
        return None
    return pb.ProjectModelFiles(
        base=record.base,
        files={name: _blob(blobs, project, digest) for name, digest in record.files.items()},
        weights_digest=record.weights_digest,
        card_json=json.dumps(record.card, sort_keys=True, ensure_ascii=False),
    )


def _blob(blobs: BlobStore, project: str, digest: str) -> items_pb2.BlobRef:
    """Return a blob with its size; 0 where it is gone."""
    try:
        with blobs.open(project, digest) as file:
            return items_pb2.BlobRef(digest=digest, size_bytes=file.seek(0, os.SEEK_END))
    except NotFound:
        return items_pb2.BlobRef(digest=digest)
