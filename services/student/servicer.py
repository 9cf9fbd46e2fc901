"""StudentService: checks a call, finds its student, does the arithmetic off the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from stillhouse.common.v1 import items_pb2
from stillhouse.student.v1 import student_pb2, student_pb2_grpc

from services.common.accounting import Tally, noted
from services.common.blobs import BlobStore, check_digest
from services.common.errors import Internal, InvalidInput
from services.common.inputs import check_batch
from services.common.interceptors import Context
from services.common.model_cache import forget_files
from services.common.names import check_id, parse
from services.common.timings import encoding
from services.student import explain, export
from services.student.classifier.options import check_classifier
from services.student.inference import StudentInference
from services.student.inspection import inspect
from services.student.language.requests import check_language
from services.student.library import Library
from services.student.pruning.requests import check_importance
from services.student.recipes import KINDS
from services.student.runs import RunManager
from services.student.settings import StudentSettings
from services.student.tuning_service import TuningService

R = TypeVar("R")
MAX_DRAWS = 200


class StudentServicer(student_pb2_grpc.StudentServiceServicer):
    """The RPCs of StudentService."""

    def __init__(self, settings: StudentSettings, blobs: BlobStore) -> None:
        self._settings, self._blobs = settings, blobs
        self._runs = RunManager(settings)
        self._library = Library(
            blobs, students=settings.cached_students, tables=settings.cached_tables
        )
        self._tuning = TuningService(blobs, self._library, settings.max_edits)
        self._online = ThreadPoolExecutor(2, thread_name_prefix="online")
        self._solver = ThreadPoolExecutor(1, thread_name_prefix="solver")
        self.inference = StudentInference(self._library, self._online, settings.max_batch_items)
        """The same students in the Open Inference Protocol."""
        self._address = settings.owner_address or (
            f"{settings.host}:{settings.port}" if settings.port else ""
        )

    async def Train(
        self, request: student_pb2.TrainRequest, context: Context
    ) -> AsyncIterator[student_pb2.TrainResponse]:
        _check_recipe(request, self._settings.max_concepts)
        if request.after_sequence < 0:
            raise InvalidInput("after_sequence: must not be negative", field="after_sequence")
        after, recipe = request.after_sequence, student_pb2.TrainRequest()
        recipe.CopyFrom(request)
        recipe.ClearField("after_sequence")
        async for event in self._runs.train(recipe, after):
            event.owner_address = self._address
            yield event

    async def StopTraining(
        self, request: student_pb2.StopTrainingRequest, context: Context
    ) -> student_pb2.StopTrainingResponse:
        stopped = await self._runs.stop(request.project, request.run_id)
        return student_pb2.StopTrainingResponse(stopped=stopped)

    async def RemoveRuns(
        self, request: student_pb2.RemoveRunsRequest, context: Context
    ) -> student_pb2.RemoveRunsResponse:
        prefix, dry = request.run_id_prefix, request.dry_run
        runs = await self._runs.remove(request.project, prefix, dry_run=dry)
        if prefix:
            return student_pb2.RemoveRunsResponse(run_count=runs)
        models = self._library.forget(request.project, dry_run=dry)
        models += await asyncio.to_thread(
            forget_files, self._settings.cache_dir, request.project, dry_run=dry
        )
        return student_pb2.RemoveRunsResponse(run_count=runs, model_count=models)

    async def Predict(
        self, request: student_pb2.PredictRequest, context: Context
    ) -> student_pb2.PredictResponse:
        self._check_ref(request.project, request.student)
        check_batch(request.items, limit=self._settings.max_batch_items)

        def work() -> tuple[list[student_pb2.PredictResult], Sequence[str]]:
            student = self._library.student(request.project, request.student)
            return explain.predict(student, request.items), student.classes

        (results, classes), timings = await self._answer(work, len(request.items))
        with encoding(timings):
            response = student_pb2.PredictResponse(results=results, classes=classes)
        response.timings.CopyFrom(timings)
        return response

    async def Explain(
        self, request: student_pb2.ExplainRequest, context: Context
    ) -> student_pb2.ExplainResponse:
        self._check_ref(request.project, request.student)
        check_batch(request.items, limit=self._settings.max_batch_items)

        def work() -> list[student_pb2.ExplainResult]:
            student = self._library.student(request.project, request.student)
            return explain.explain(student, request.items, request.label, request.top)

        results, timings = await self._answer(work, len(request.items))
        with encoding(timings):
            response = student_pb2.ExplainResponse(results=results)
        response.timings.CopyFrom(timings)
        return response

    async def Refit(
        self, request: student_pb2.RefitRequest, context: Context
    ) -> student_pb2.RefitResponse:
        self._check_ref(request.project, request.student)
        return await self._in(self._solver, lambda: self._tuning.refit(request))

    async def Evaluate(
        self, request: student_pb2.EvaluateRequest, context: Context
    ) -> student_pb2.EvaluateResponse:
        self._check_ref(request.project, request.student)
        return await self._in(self._solver, lambda: self._tuning.evaluate(request))

    async def Inspect(
        self, request: student_pb2.InspectRequest, context: Context
    ) -> student_pb2.InspectResponse:
        self._check_ref(request.project, request.student)
        return await self._in(self._solver, lambda: inspect(self._blobs, self._library, request))

    async def Export(
        self, request: student_pb2.ExportRequest, context: Context
    ) -> student_pb2.ExportResponse:
        self._check_ref(request.project, request.student)
        if request.HasField("encoder_onnx"):
            check_digest(request.encoder_onnx.digest, field="encoder_onnx")

        def work() -> student_pb2.ExportResponse:
            student = self._library.student(request.project, request.student)
            return export.export_files(self._blobs, request, student)

        return await self._in(self._solver, work)

    async def canary(self) -> None:
        """Multiply two matrices where Predict does."""

        def work() -> None:
            if not np.isfinite(np.ones((8, 8)) @ np.ones((8, 8))).all():
                raise Internal("the machine cannot multiply")

        await self._in(self._online, work)

    async def close(self) -> None:
        """End workers, to be resumed later, and the pools."""
        await self._runs.close()
        self._online.shutdown(wait=False, cancel_futures=True)
        self._solver.shutdown(wait=False, cancel_futures=True)

    def _check_ref(self, project: str, ref: student_pb2.StudentRef) -> None:
        check_id(project, field="project")
        check_digest(ref.weights_digest, field="student.weights_digest")
        check_digest(ref.card_digest, field="student.card_digest")

    async def _answer(self, work: Callable[[], R], items: int) -> tuple[R, items_pb2.Timings]:
        """Answer a call on `items` images; the arithmetic is numpy's, whatever trains elsewhere."""
        tally = Tally()
        mine = noted(work, "students", items=items, tally=tally, device="cpu")
        found = await self._in(self._online, mine)
        return found, tally.timings()

    async def _in(self, pool: ThreadPoolExecutor, work: Callable[[], R]) -> R:
        return await asyncio.get_running_loop().run_in_executor(pool, work)


def _check_recipe(request: student_pb2.TrainRequest, max_concepts: int) -> None:
    """Raise InvalidInput for what can be seen without reading a blob."""
    check_id(request.project, field="project")
    kind = request.WhichOneof("recipe")
    if kind is None:
        raise InvalidInput(f"recipe: one of {', '.join(KINDS)} is required", field="recipe")
    if kind == "language":
        check_language(request.language)
        _check_teacher(request.language, request.project)
        return
    if kind == "importance":
        check_importance(request.importance)
        return
    if kind == "classifier":
        check_classifier(request.classifier)
        return
    data = request.concept.data if kind == "concept" else request.linear_head.data
    check_digest(data.manifest.digest, field="data.manifest")
    for name in ("teacher_shards", "feature_shards", "region_shards"):
        for ref in getattr(data, name):
            check_digest(ref.digest, field=f"data.{name}")
    if kind == "concept":
        _check_concept(request.concept, max_concepts)
    elif not data.feature_shards:
        raise InvalidInput("data.feature_shards: at least one is required", field="feature_shards")


def _check_teacher(recipe: student_pb2.LanguageRecipe, project: str) -> None:
    if not recipe.HasField("on_policy") or recipe.evaluate_only:
        return
    field = "on_policy.teacher"
    if parse(recipe.on_policy.teacher, "models", field=field)[0] != project:
        raise InvalidInput(f"{field}: reaches into another project than {project}", field=field)


def _check_concept(recipe: student_pb2.ConceptRecipe, max_concepts: int) -> None:
    names = list(recipe.concepts)
    if not 1 <= len(names) <= max_concepts or len(set(names)) != len(names) or "" in names:
        raise InvalidInput(f"concepts: needs 1 to {max_concepts} different words", field="concepts")
    for name in ("teacher_shards", "region_shards"):
        if not getattr(recipe.data, name):
            raise InvalidInput(f"data.{name}: at least one is required", field=f"data.{name}")
    check_digest(recipe.concept_embeddings.digest, field="concept_embeddings")
    if recipe.HasField("control_embeddings"):
        check_digest(recipe.control_embeddings.digest, field="control_embeddings")
    for name in ("l1", "nec"):
        value = getattr(recipe, name)
        if not 0 <= value < float("inf"):
            raise InvalidInput(f"{name}: must be finite and not negative", field=name)
    if recipe.WhichOneof("sparsity") == "l1" and recipe.l1 == 0:
        raise InvalidInput("l1: must be more than 0", field="l1")
    if recipe.loss not in (0, student_pb2.LOSS_SOFTMAX, student_pb2.LOSS_BCE):
        raise InvalidInput("loss: unknown value", field="loss")
    if recipe.control_draws > MAX_DRAWS:
        raise InvalidInput(f"control_draws: at most {MAX_DRAWS}", field="control_draws")
