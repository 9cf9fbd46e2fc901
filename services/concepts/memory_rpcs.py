"""The RPCs of ConceptsService by which operators load encoders and put them away."""

from __future__ import annotations

from stillhouse.concepts.v1 import concepts_pb2 as pb

from services.common.interceptors import Context
from services.common.loaded import loaded_message, loaded_messages
from services.common.names import check_id, parse
from services.concepts.registry import Registry

_COLLECTION = "encoders"


class MemoryRpcs:
    """Load, unload, list."""

    _registry: Registry

    async def LoadModel(
        self, request: pb.LoadModelRequest, context: Context
    ) -> pb.LoadModelResponse:
        project, encoder_id = parse(request.name, _COLLECTION)
        model = await self._registry.load(project, encoder_id)
        return pb.LoadModelResponse(model=loaded_message(project, _COLLECTION, model))

    async def UnloadModel(
        self, request: pb.UnloadModelRequest, context: Context
    ) -> pb.UnloadModelResponse:
        project, encoder_id = parse(request.name, _COLLECTION)
        was_loaded = await self._registry.unload(project, encoder_id)
        return pb.UnloadModelResponse(was_loaded=was_loaded)

    async def ListLoadedModels(
        self, request: pb.ListLoadedModelsRequest, context: Context
    ) -> pb.ListLoadedModelsResponse:
        project = check_id(request.project, field="project")
        found = loaded_messages(project, _COLLECTION, self._registry.loaded_models())
        return pb.ListLoadedModelsResponse(models=found)
