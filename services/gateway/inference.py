"""The gateway's Open Inference Protocol: students by name on images, and the teacher's models,
whose calls are handed on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from stillhouse.inference.v2 import open_inference_pb2 as pb

from services.common.channels import call as call_peer
from services.common.inference.names import MODELS, parse_model_name
from services.common.inference.servicer import InferenceServicer
from services.common.interceptors import Context
from services.gateway.peers import Peers
from services.gateway.student_inference import ServedStudent, StudentInference

R = TypeVar("R")


class GatewayInference(InferenceServicer[ServedStudent]):
    """Answers for students, asks the teacher for models."""

    def __init__(self, students: StudentInference, peers: Peers, ready: Callable[[], bool]) -> None:
        super().__init__("gateway", students, ready)
        self._peers = peers

    async def ModelReady(
        self, request: pb.ModelReadyRequest, context: Context
    ) -> pb.ModelReadyResponse:
        if _is_model(request.name):
            return await self._hand_on(self._peers.inference.ModelReady, request, context)
        return await super().ModelReady(request, context)

    async def ModelMetadata(
        self, request: pb.ModelMetadataRequest, context: Context
    ) -> pb.ModelMetadataResponse:
        if _is_model(request.name):
            return await self._hand_on(self._peers.inference.ModelMetadata, request, context)
        return await super().ModelMetadata(request, context)

    async def ModelInfer(
        self, request: pb.ModelInferRequest, context: Context
    ) -> pb.ModelInferResponse:
        if _is_model(request.model_name):
            return await self._hand_on(self._peers.inference.ModelInfer, request, context)
        return await super().ModelInfer(request, context)

    async def ModelStatistics(
        self, request: pb.ModelStatisticsRequest, context: Context
    ) -> pb.ModelStatisticsResponse:
        ask = self._peers.inference.ModelStatistics
        if request.name:
            if _is_model(request.name):
                return await self._hand_on(ask, request, context)
            return await super().ModelStatistics(request, context)
        own, models = await asyncio.gather(
            super().ModelStatistics(request, context), self._hand_on(ask, request, context)
        )
        return pb.ModelStatisticsResponse(model_stats=[*own.model_stats, *models.model_stats])

    async def RepositoryIndex(
        self, request: pb.RepositoryIndexRequest, context: Context
    ) -> pb.RepositoryIndexResponse:
        own, models = await asyncio.gather(
            super().RepositoryIndex(request, context),
            self._hand_on(self._peers.inference.RepositoryIndex, request, context),
        )
        return pb.RepositoryIndexResponse(models=[*models.models, *own.models])

    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: Context
    ) -> pb.RepositoryModelLoadResponse:
        if _is_model(request.model_name):
            return await self._hand_on(self._peers.inference.RepositoryModelLoad, request, context)
        return await super().RepositoryModelLoad(request, context)

    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: Context
    ) -> pb.RepositoryModelUnloadResponse:
        if _is_model(request.model_name):
            ask = self._peers.inference.RepositoryModelUnload
            return await self._hand_on(ask, request, context)
        return await super().RepositoryModelUnload(request, context)

    async def _hand_on(
        self, method: Callable[..., Awaitable[R]], request: Any, context: Context
    ) -> R:
        """Ask the teacher within the caller's time; a model may have to be loaded first."""
        left_s = context.time_remaining()
        limit_s = self._peers.shard_timeout_s
        timeout_s = limit_s if left_s is None else min(left_s, limit_s)
        return await call_peer(method, request, timeout_s=timeout_s)


def _is_model(name: str) -> bool:
    return parse_model_name(name).collection == MODELS
