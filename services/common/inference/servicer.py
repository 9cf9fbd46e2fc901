"""GRPCInferenceService over whatever a service has for models."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib import metadata
from typing import Generic

from stillhouse.inference.v2 import open_inference_pb2 as pb
from stillhouse.inference.v2 import open_inference_pb2_grpc

from services.common.errors import InvalidInput, NotFound
from services.common.inference.model import Answer, Backend, M
from services.common.inference.requests import InferCall
from services.common.inference.responses import respond
from services.common.inference.statistics import Spent, Statistics
from services.common.interceptors import Context
from services.common.names import DEFAULT_PROJECT, check_id

SERVICE = "inference.GRPCInferenceService"
EXTENSIONS = ("classification", "model_repository", "parameters", "statistics")
READY, UNAVAILABLE = "READY", "UNAVAILABLE"


class InferenceServicer(open_inference_pb2_grpc.GRPCInferenceServiceServicer, Generic[M]):
    """The protocol's RPCs; `service` is the service's name, `ready` tells whether it takes work."""

    def __init__(self, service: str, backend: Backend[M], ready: Callable[[], bool]) -> None:
        self._service, self._backend, self._ready = service, backend, ready
        self._statistics = Statistics()

    async def ServerLive(
        self, request: pb.ServerLiveRequest, context: Context
    ) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(
        self, request: pb.ServerReadyRequest, context: Context
    ) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._ready())

    async def ServerMetadata(
        self, request: pb.ServerMetadataRequest, context: Context
    ) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(
            name=f"stillhouse-{self._service}",
            version=metadata.version("stillhouse"),
            extensions=EXTENSIONS,
        )

    async def ModelReady(
        self, request: pb.ModelReadyRequest, context: Context
    ) -> pb.ModelReadyResponse:
        found = await self._backend.is_ready(request.name, request.version, context)
        return pb.ModelReadyResponse(ready=found and self._ready())

    async def ModelMetadata(
        self, request: pb.ModelMetadataRequest, context: Context
    ) -> pb.ModelMetadataResponse:
        model = await self._backend.find(request.name, request.version, context)
        return pb.ModelMetadataResponse(
            name=request.name,
            versions=await self._backend.versions(model, context),
            platform=model.platform,
            inputs=[spec.message() for spec in model.inputs],
            outputs=[spec.message() for spec in model.outputs],
        )

    async def ModelInfer(
        self, request: pb.ModelInferRequest, context: Context
    ) -> pb.ModelInferResponse:
        started_ns = time.perf_counter_ns()
        model = await self._backend.find(request.model_name, request.model_version, context)
        try:
            call = InferCall(request)
            call.check_outputs(spec.name for spec in model.outputs)
            answer = await self._backend.infer(model, call, context)
            response = self._respond(model, call, answer, started_ns)
        except Exception:
            spent_ns = time.perf_counter_ns() - started_ns
            self._statistics.failed(model.name, model.version, spent_ns)
            raise
        return response

    async def ModelStatistics(
        self, request: pb.ModelStatisticsRequest, context: Context
    ) -> pb.ModelStatisticsResponse:
        name = self._backend.name_of(request.name) if request.name else ""
        return pb.ModelStatisticsResponse(model_stats=self._statistics.of(name, request.version))

    async def RepositoryIndex(
        self, request: pb.RepositoryIndexRequest, context: Context
    ) -> pb.RepositoryIndexResponse:
        project = check_id(request.repository_name or DEFAULT_PROJECT, field="repository_name")
        response = pb.RepositoryIndexResponse()
        for one in await self._backend.listed(project, context):
            if one.ready or not request.ready:
                state = READY if one.ready else UNAVAILABLE
                response.models.add(
                    name=one.name, version=one.version, state=state, reason=one.reason
                )
        return response

    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: Context
    ) -> pb.RepositoryModelLoadResponse:
        if request.parameters:
            raise InvalidInput(
                "parameters: models come from the catalogue and from jobs; none can be sent here",
                field="parameters",
            )
        await self._backend.load(request.model_name, context)
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: Context
    ) -> pb.RepositoryModelUnloadResponse:
        await self._backend.unload(request.model_name, context)
        return pb.RepositoryModelUnloadResponse()

    def _respond(
        self, model: M, call: InferCall, answer: Answer, started_ns: int
    ) -> pb.ModelInferResponse:
        made_ns = time.perf_counter_ns()
        response = respond(call, answer.version, answer.outputs, answer.classes)
        done_ns = time.perf_counter_ns()
        spent = Spent(answer.items, done_ns - started_ns, done_ns - made_ns, answer.timings)
        self._statistics.succeeded(model.name, answer.version, spent)
        return response


def no_version(name: str, version: str, known: str) -> NotFound:
    """Return the error for a version that a model has not."""
    said = f"{name} has no version {version[:80]!r}; {known}"
    return NotFound(said, resource=f"{name}/{version[:80]}")
