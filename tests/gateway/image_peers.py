"""Stand-ins for TeacherService and StudentService in stories of classifier jobs, over real gRPC.

The teacher is right about every image; a student's arm is right about a fixed share of them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import numpy as np
from stillhouse.common.v1 import items_pb2
from stillhouse.student.v1 import student_pb2, student_pb2_grpc
from stillhouse.teacher.v1 import teacher_pb2, teacher_pb2_grpc

from services.common.blobs import BlobStore
from services.common.catalogue import InputSpec
from services.common.classifier_records import ClassifierRecord
from services.common.errors import InvalidInput, NotFound
from services.common.interceptors import ErrorInterceptor
from services.common.manifest import Manifest
from services.common.tensors import Array, pack_arrays, to_message

MODELS = {
    "big": ("b", "a"),
    "wide": ("a", "b", "c"),
    "headless": ("b", "a"),
    "many": ("b", "a"),
}
RIGHT = {"soft_hard": 1.0, "alone": 0.5, "soft": 0.75}
STEPS = 10


class Teacher(teacher_pb2_grpc.TeacherServiceServicer):
    """Answers from the labels that it was told; counts images by whether views were asked for."""

    def __init__(self) -> None:
        self.labels: dict[str, int] = {}
        """Of the classes a, b by digest; an image without one cannot be read."""
        self.asked: Counter[tuple[str, bool]] = Counter()

    async def GetModel(self, request: Any, context: Any) -> teacher_pb2.GetModelResponse:
        model = request.name.rsplit("/", 1)[-1]
        if model == "words":
            found = teacher_pb2.Model(language_model=teacher_pb2.LanguageModelSpec())
            return teacher_pb2.GetModelResponse(model=found)
        if model not in MODELS:
            raise NotFound(f"there is no model {request.name}", resource=request.name)
        spec = teacher_pb2.ImageClassifierSpec(
            classes=MODELS[model],
            single_label=model != "many",
            feature_dim=0 if model == "headless" else 3,
        )
        made = teacher_pb2.Model(name=request.name, digest=f"d-{model}", image_classifier=spec)
        return teacher_pb2.GetModelResponse(model=made)

    async def Classify(self, request: Any, context: Any) -> teacher_pb2.ClassifyResponse:
        views = request.augmentation.views if request.HasField("augmentation") else 0
        self.asked.update((item.digest, bool(views)) for item in request.items)
        results = [self._one(item, views) for item in request.items]
        return teacher_pb2.ClassifyResponse(results=results, model_digest="d-big")

    def _one(self, item: items_pb2.ImageInput, views: int) -> teacher_pb2.ClassifyResult:
        label = self.labels.get(item.digest)
        if label is None:
            error = InvalidInput("the image is damaged").to_status()
            return teacher_pb2.ClassifyResult(item_id=item.item_id, error=error)
        row = 4 * np.eye(2, dtype="<f4")[1 - label]
        logits = np.tile(row, (views, 1)) if views else row
        answer = teacher_pb2.Classification(logits=to_message(logits))
        return teacher_pb2.ClassifyResult(item_id=item.item_id, classification=answer)


@dataclass
class Student(student_pb2_grpc.StudentServiceServicer):
    """Trains at once."""

    blobs: BlobStore
    recipes: list[student_pb2.ClassifierRecipe] = field(default_factory=list)

    async def Train(self, request: Any, context: Any) -> AsyncIterator[student_pb2.TrainResponse]:
        recipe = request.classifier
        self.recipes.append(recipe)
        progress = student_pb2.TrainProgress(
            stage="training", done=5, total=recipe.training.max_steps, metrics={"loss": 1.5}
        )
        yield student_pb2.TrainResponse(sequence=1, progress=progress)
        made = student_pb2.TrainResult(classifier=self._result(recipe, request.project))
        yield student_pb2.TrainResponse(sequence=2, result=made)

    def _result(
        self, recipe: student_pb2.ClassifierRecipe, project: str
    ) -> student_pb2.ClassifierResult:
        def put(data: bytes) -> items_pb2.BlobRef:
            return items_pb2.BlobRef(digest=self.blobs.put(project, data))

        manifest = Manifest.from_bytes(self.blobs.get(project, recipe.data.manifest.digest))
        arm, weights = recipe.provenance["arm"], put(recipe.SerializeToString(deterministic=True))
        record = ClassifierRecord(
            architecture=recipe.architecture,
            classes=manifest.classes,
            single_label=True,
            weights=weights.digest,
            input=InputSpec(size_px=32),
            card={"provenance": dict(recipe.provenance)},
        )
        report = {
            "kind": "classifier",
            "architecture": recipe.architecture,
            "size": {"parameters": 24_000, "weights_bytes": 96_000},
            "latency": {"median_ms": 1.0, "onnx_median_ms": 0.5},
            "curves": [{"run": "", "step": 5, "loss": 1.5}],
            "steps": recipe.training.max_steps,
            "seconds": 1.0,
        }
        result = student_pb2.ClassifierResult(
            weights=weights,
            card=put(record.to_bytes()),
            report=put(json.dumps(report).encode()),
            predictions=put(predictions(manifest, RIGHT[arm])),
        )
        if not recipe.skip_onnx:
            result.onnx.CopyFrom(put(b"onnx"))
        return result


def predictions(manifest: Manifest, right: float) -> bytes:
    """Logits of the test items: so many are right, the first ones."""
    test = [item for item in manifest.items if item.split == "test"]
    logits: list[Array] = []
    for at, item in enumerate(test):
        label = item.labels[0] if at < right * len(test) else 1 - item.labels[0]
        logits.append(2 * np.eye(2, dtype="<f4")[label])
    raw = np.frombuffer(bytes.fromhex("".join(i.digest for i in test)), np.uint8)
    return pack_arrays({"logits": np.stack(logits), "digests": raw.reshape(-1, 32)})


@asynccontextmanager
async def peers(blobs: BlobStore) -> AsyncIterator[tuple[Teacher, Student, str]]:
    """Run both on one port; yields them and their address."""
    teacher, student = Teacher(), Student(blobs)
    server = grpc.aio.server(interceptors=[ErrorInterceptor()])
    teacher_pb2_grpc.add_TeacherServiceServicer_to_server(teacher, server)
    student_pb2_grpc.add_StudentServiceServicer_to_server(student, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield teacher, student, f"127.0.0.1:{port}"
    finally:
        await server.stop(None)
