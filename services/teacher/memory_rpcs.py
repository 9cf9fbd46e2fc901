"""The RPCs of TeacherService by which operators load models of any kind and put them away."""

from __future__ import annotations

import asyncio

from stillhouse.teacher.v1 import teacher_pb2 as pb

from services.common.errors import Overloaded
from services.common.interceptors import Context
from services.common.loaded import loaded_message, loaded_messages
from services.common.names import check_id, parse
from services.common.resident import LoadedModel
from services.teacher.language.calls import LanguageCalls
from services.teacher.registry import Registry

_COLLECTION = "models"


class MemoryRpcs:
    """Load, unload, list."""

    _registry: Registry
    _language: LanguageCalls

    async def LoadModel(
        self, request: pb.LoadModelRequest, context: Context
    ) -> pb.LoadModelResponse:
        project, model_id = parse(request.name, _COLLECTION)
        model = await self._load(project, model_id)
        return pb.LoadModelResponse(model=loaded_message(project, _COLLECTION, model))

    async def UnloadModel(
        self, request: pb.UnloadModelRequest, context: Context
    ) -> pb.UnloadModelResponse:
        project, model_id = parse(request.name, _COLLECTION)
        if await asyncio.to_thread(self._language.knows, project, model_id):
            was_loaded = await self._language.unload(project, model_id)
        else:
            was_loaded = await self._registry.unload(project, model_id)
        return pb.UnloadModelResponse(was_loaded=was_loaded)

    async def ListLoadedModels(
        self, request: pb.ListLoadedModelsRequest, context: Context
    ) -> pb.ListLoadedModelsResponse:
        project = check_id(request.project, field="project")
        models = [*self._registry.loaded_models(), *self._language.loaded_models()]
        return pb.ListLoadedModelsResponse(models=loaded_messages(project, _COLLECTION, models))

    async def ForgetProject(
        self, request: pb.ForgetProjectRequest, context: Context
    ) -> pb.ForgetProjectResponse:
        project, dry = check_id(request.project, field="project"), request.dry_run
        count = await self._registry.forget(project, dry_run=dry)
        count += await self._language.forget(project, dry_run=dry)
        return pb.ForgetProjectResponse(count=count)

    async def _load(self, project: str, model_id: str) -> LoadedModel:
        if not await asyncio.to_thread(self._language.knows, project, model_id):
            return await self._registry.load(project, model_id)
        await self._language.load(project, model_id)
        for one in reversed(self._language.loaded_models()):
            if one.model_id == model_id and one.project in ("", project):
                return one
        raise Overloaded(f"{model_id} was put away again")
