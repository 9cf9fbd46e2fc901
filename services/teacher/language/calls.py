"""The language half of TeacherService: which backend serves a model, and what models there are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager

from stillhouse.teacher.v1 import teacher_pb2

from services.common.blobs import BlobStore
from services.common.catalogue import LanguageModel
from services.common.device import Device
from services.common.errors import NotFound, Precondition, StillhouseError
from services.common.fair_slots import FairSlots
from services.common.inputs import check_batch
from services.common.interceptors import Context, time_left_s
from services.common.model_cache import forget_files
from services.common.model_records import LanguageModelRecord
from services.common.names import join, parse
from services.common.resident import LoadedModel
from services.teacher.language.backend import LanguageBackend
from services.teacher.language.local import LocalBackend
from services.teacher.language.openai import OpenAIBackend
from services.teacher.language.openai_http import OpenAIServer
from services.teacher.language.registry import LanguageRegistry
from services.teacher.language.writing import Writers
from services.teacher.settings import TeacherSettings
from services.torch_common.language.files import ModelSource


class LanguageCalls:
    """Score, SampleTargets, Generate and the description of language models."""

    def __init__(
        self,
        settings: TeacherSettings,
        source: ModelSource,
        device: Device,
        blobs: BlobStore,
    ) -> None:
        self._settings, self._source = settings, source
        self._device, self._blobs = device, blobs
        self._registry = LanguageRegistry(settings, source, device)
        self._servers: dict[str, OpenAIServer] = {}
        self._slots = FairSlots(settings.openai_concurrency, settings.weights)
        self._writers = Writers(
            settings.max_generations, settings.max_queue_items, settings.weights
        )

    def listed(self, project: str) -> Iterator[teacher_pb2.Model]:
        """Yield every language model the project can use, none of them loaded. Blocking."""
        for entry in self._source.catalogue:
            if isinstance(entry, LanguageModel):
                yield _listed(
                    project, entry.id, entry.licence, entry.base or "", _backend_of(entry)
                )
        for model_id in self._blobs.list_refs(project, "models"):
            try:
                record = LanguageModelRecord.from_bytes(self._source.reference(project, model_id))
            except StillhouseError:  # a head of a classifier, or gone in between
                continue
            yield _listed(project, model_id, record.licence, record.base, "transformers")

    def knows(self, project: str, model_id: str) -> bool:
        """Whether the name is one of a language model; False for an unknown one. Blocking."""
        try:
            self._source.check_language(project, model_id)
        except (NotFound, Precondition):
            return False
        return True

    async def describe(self, project: str, model_id: str) -> teacher_pb2.Model:
        """The model's details; loads it. Raises NotFound."""
        async with self._backend(project, model_id) as backend:
            return await backend.describe(project)

    async def load(self, project: str, model_id: str) -> None:
        """Have a model in memory. Raises as `LanguageRegistry.use`, Precondition for a model of
        another server."""
        if self._source.remote(model_id) is not None:
            raise Precondition(f"{model_id} is in another server, which loads it itself")
        async with self._registry.use(project, model_id):
            return

    async def unload(self, project: str, model_id: str) -> bool:
        """Put a model away. Returns whether it was in memory. Raises Precondition for one that is
        in use or loaded at start."""
        if model_id == self._settings.preload:
            raise Precondition(f"{model_id} is loaded at start and stays; readiness follows it")
        if self._source.remote(model_id) is not None:
            return False
        return await self._registry.unload(project, model_id)

    async def forget(self, project: str, *, dry_run: bool = False) -> int:
        """Forget a project's models, in memory and in the cache; return how many there were."""
        in_memory = await self._registry.forget(project, dry_run=dry_run)
        cache = self._settings.cache_dir
        return in_memory + await asyncio.to_thread(forget_files, cache, project, dry_run=dry_run)

    def loaded_models(self) -> list[LoadedModel]:
        """Return what is in memory here, of all projects."""
        return self._registry.loaded_models()

    async def score(
        self, request: teacher_pb2.ScoreRequest, context: Context
    ) -> teacher_pb2.ScoreResponse:
        """See TeacherService.Score."""
        check_batch(request.items, limit=self._settings.max_batch_items)
        project, model_id = parse(request.model, "models", field="model")
        async with self._backend(project, model_id) as backend:
            return await backend.score(request, time_left_s(context))

    async def sample_targets(
        self, request: teacher_pb2.SampleTargetsRequest
    ) -> teacher_pb2.SampleTargetsResponse:
        """See TeacherService.SampleTargets."""
        project, model_id = parse(request.model, "models", field="model")
        async with self._backend(project, model_id) as backend:
            return await backend.sample_targets(project, request)

    async def generate(
        self, request: teacher_pb2.GenerateRequest
    ) -> AsyncGenerator[teacher_pb2.GenerateResponse, None]:
        """See TeacherService.Generate."""
        check_batch(request.items, limit=self._settings.max_batch_items)
        project, model_id = parse(request.model, "models", field="model")
        async with (
            self._backend(project, model_id) as backend,
            aclosing(backend.generate(request)) as events,
        ):
            async for event in events:
                yield event

    async def canary(self, model_id: str) -> None:
        """Run a small forward pass of a model through its queue."""
        async with self._backend("default", model_id) as backend:
            if isinstance(backend, LocalBackend):
                await backend.canary()

    async def close(self) -> None:
        """Let go of connections."""
        await asyncio.gather(*(server.close() for server in self._servers.values()))

    def _server(self, url: str) -> OpenAIServer:
        if url not in self._servers:
            settings = self._settings
            self._servers[url] = OpenAIServer(
                url,
                settings.openai_api_key.get_secret_value(),
                timeout_s=settings.openai_timeout_s,
                max_bytes=settings.max_message_bytes,
            )
        return self._servers[url]

    @asynccontextmanager
    async def _backend(self, project: str, model_id: str) -> AsyncIterator[LanguageBackend]:
        await asyncio.to_thread(self._source.check_language, project, model_id)
        entry = self._source.remote(model_id)
        if entry is not None:
            yield OpenAIBackend(entry, self._server(entry.url), self._slots)
            return
        async with self._registry.use(project, model_id) as served:
            yield LocalBackend(served, self._settings, self._device, self._blobs, self._writers)


def _backend_of(entry: LanguageModel) -> str:
    return "openai" if entry.loader == "openai" else "transformers"


def _listed(
    project: str, model_id: str, licence: str, base: str, backend: str
) -> teacher_pb2.Model:
    return teacher_pb2.Model(
        name=join(project, "models", model_id),
        kind=teacher_pb2.MODEL_KIND_LANGUAGE_MODEL,
        licence=licence,
        language_model=teacher_pb2.LanguageModelSpec(base=base, backend=backend),
    )
