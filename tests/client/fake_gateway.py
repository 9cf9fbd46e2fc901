"""A small real gRPC server with fixed answers, for what a whole suite would be too heavy to show:
error texts, batch limits, broken streams, exit codes."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import numpy as np
from google.rpc import code_pb2, status_pb2
from stillhouse.common.v1 import info_pb2, info_pb2_grpc, items_pb2
from stillhouse.gateway.v1 import datasets_pb2 as datasets
from stillhouse.gateway.v1 import (
    datasets_pb2_grpc,
    jobs_pb2_grpc,
    models_pb2_grpc,
    students_pb2_grpc,
)
from stillhouse.gateway.v1 import jobs_pb2 as jobs
from stillhouse.gateway.v1 import students_pb2 as students
from stillhouse.student.v1 import student_pb2

from services.common import tensors
from services.common.errors import InvalidInput, NotFound
from services.common.interceptors import ErrorInterceptor
from tests.client import fake_history, fake_language, fake_stats
from tests.support import photo

P = "projects/default"
FRUIT = f"{P}/students/fruit"
JOB = f"{P}/distillationJobs/job-1"
CLASSES = ["Apple", "Pink-Lady"]
CONCEPTS = ["red skin", "green", "stalk"]
BATCH = 3


@dataclass
class World:
    """What the server holds and what it was asked."""

    address: str = ""
    datasets: dict[str, datasets.Dataset] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    calls: list[Any] = field(default_factory=list)
    away: int = 0
    """So many next calls of GetDataset are answered with UNAVAILABLE."""
    job_state: int = jobs.JOB_STATE_SUCCEEDED
    job_kind: str = "concept"
    in_review: bool = False
    """The job waits for its review."""
    interrupts: bool = False
    """Ctrl-C comes after the first event."""
    model_files: dict[str, bytes] = field(
        default_factory=lambda: {
            "model.safetensors": fake_language.WEIGHTS,
            "adapter_config.json": b"{}",
        }
    )
    """Files of the model `tiny`."""

    def put(self, data: bytes) -> items_pb2.BlobRef:
        digest = hashlib.sha256(data).hexdigest()
        self.blobs[digest] = data
        return items_pb2.BlobRef(digest=digest, size_bytes=len(data))

    def last(self, kind: type[Any]) -> Any:
        return [call for call in self.calls if isinstance(call, kind)][-1]


class Info(info_pb2_grpc.InfoServiceServicer):
    async def GetInfo(self, request: Any, context: Any) -> info_pb2.GetInfoResponse:
        limits = info_pb2.Limits(max_message_bytes=8 << 20, max_batch_items=BATCH)
        return info_pb2.GetInfoResponse(service="gateway", version="0.1.0", limits=limits)

    async def GetStats(self, request: Any, context: Any) -> info_pb2.GetStatsResponse:
        return fake_stats.answer(request)


class Datasets(datasets_pb2_grpc.DatasetServiceServicer):
    def __init__(self, world: World) -> None:
        self.world = world

    async def CreateDataset(self, request: Any, context: Any) -> datasets.CreateDatasetResponse:
        self.world.calls.append(request)
        name = f"projects/{request.project}/datasets/{request.dataset_id}"
        made = datasets.Dataset(
            name=name,
            state=datasets.DATASET_STATE_READY,
            classes=CLASSES,
            split_counts={"train": 7, "val": 1, "test": 2},
            item_count=10,
            kind=request.kind,
            field_counts={"prompt": 9} if request.kind == datasets.DATASET_KIND_TEXTS else {},
        )
        if request.uri.startswith("file:///missing"):
            made.state = datasets.DATASET_STATE_FAILED
            made.error.CopyFrom(
                status_pb2.Status(code=code_pb2.INVALID_ARGUMENT, message="no images")
            )
        self.world.datasets[name] = made
        return datasets.CreateDatasetResponse(dataset=made)

    async def CorrectLabels(self, request: Any, context: Any) -> datasets.CorrectLabelsResponse:
        self.world.calls.append(request)
        return datasets.CorrectLabelsResponse(dataset=fake_history.corrected(request))

    async def UploadArchive(self, requests: Any, context: Any) -> datasets.UploadArchiveResponse:
        data, project = b"", ""
        async for request in requests:
            data, project = data + request.chunk, project or request.project
        if not project:
            raise InvalidInput("project: must be set in the first message", field="project")
        return datasets.UploadArchiveResponse(archive=self.world.put(data))

    async def GetDataset(self, request: Any, context: Any) -> datasets.GetDatasetResponse:
        if self.world.away:
            self.world.away -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "starting")
        if request.name not in self.world.datasets:
            raise NotFound(f"dataset {request.name} does not exist", resource=request.name)
        return datasets.GetDatasetResponse(dataset=self.world.datasets[request.name])

    async def ListDatasets(self, request: Any, context: Any) -> datasets.ListDatasetsResponse:
        found = list(self.world.datasets.values())
        at = int(request.page_token or 0)
        token = str(at + 1) if at + 1 < len(found) else ""
        return datasets.ListDatasetsResponse(datasets=found[at : at + 1], next_page_token=token)

    async def ListDatasetItems(self, request: Any, context: Any) -> Any:
        item = datasets.DatasetItem(item_id="a.jpg", split="train", labels=["Apple"])
        return datasets.ListDatasetItemsResponse(items=[item])


class Jobs(fake_language.Samples, fake_language.Watched, jobs_pb2_grpc.DistillationServiceServicer):
    def __init__(self, world: World) -> None:
        self.world = world

    def job(self, done: int = 10) -> jobs.DistillationJob:
        stage = jobs.JobStage(stage="regions", done=done, total=10, unit="images", elapsed_s=1.5)
        state = self.world.job_state if done == 10 else jobs.JOB_STATE_RUNNING
        job = jobs.DistillationJob(name=JOB, state=state, stages=[stage])  # type: ignore[arg-type]
        if self.world.job_kind == "concept":
            job.concept.dataset = f"{P}/datasets/fruit"
        if job.state == jobs.JOB_STATE_FAILED:
            job.error.CopyFrom(
                status_pb2.Status(code=code_pb2.FAILED_PRECONDITION, message="no fit")
            )
        elif job.state == jobs.JOB_STATE_SUCCEEDED:
            job.student_version = f"{FRUIT}/versions/1"
        if self.world.job_kind != "concept":
            fake_language.fill(self.world, job)
        return job

    async def CreateDistillationJob(self, request: Any, context: Any) -> Any:
        self.world.calls.append(request)
        return jobs.CreateDistillationJobResponse(job=self.job(0))

    async def EstimateDistillationJob(self, request: Any, context: Any) -> Any:
        return jobs.EstimateDistillationJobResponse(
            item_count=10, cached_item_count=4, duration_s=72, stored_bytes=5 << 20, concept_count=9
        )

    async def GetDistillationJob(self, request: Any, context: Any) -> Any:
        if request.name != JOB:
            raise NotFound(f"job {request.name} does not exist", resource=request.name)
        return jobs.GetDistillationJobResponse(job=self.job())

    async def ListDistillationJobs(self, request: Any, context: Any) -> Any:
        return jobs.ListDistillationJobsResponse(jobs=[self.job()])

    async def CancelDistillationJob(self, request: Any, context: Any) -> Any:
        job = self.job()
        job.state = jobs.JOB_STATE_CANCELLED
        return jobs.CancelDistillationJobResponse(job=job)

    async def WatchDistillationJob(
        self, request: Any, context: Any
    ) -> AsyncIterator[jobs.WatchDistillationJobResponse]:
        """Send one event after the token, then break the stream; the tenth ends the job."""
        self.world.calls.append(request)
        if self.world.job_kind != "concept":
            async for event in self.language_events(request):
                yield event
            return
        at = int(request.resume_token or 0) + 5
        yield jobs.WatchDistillationJobResponse(
            resume_token=str(at), job=self.job(at), message=f"regions: {at} of 10 images"
        )
        if at < 10:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "broken")


class Students(fake_history.History, students_pb2_grpc.StudentsServiceServicer):
    def __init__(self, world: World) -> None:
        self.world = world
        card = world.put(json.dumps({"classes": CLASSES, "concepts": CONCEPTS}).encode())
        ref = student_pb2.StudentRef(weights_digest="ab" * 32, card_digest=card.digest)
        weights = [
            students.ConceptWeight(concept="red skin", weight=0.41, influence=0.5),
            students.ConceptWeight(concept="green", weight=-0.2, influence=0.3),
        ]
        self.version = students.StudentVersion(
            name=f"{FRUIT}/versions/1",
            student_ref=ref,
            class_concepts=[students.ClassConcepts(label=k, concepts=weights) for k in CLASSES],
        )

    def student(self, promoted: str = "1") -> students.Student:
        return students.Student(
            name=FRUIT,
            head_version=f"{FRUIT}/versions/1",
            promoted_version=f"{FRUIT}/versions/{promoted}",
            dataset=f"{P}/datasets/fruit",
            teacher=f"{P}/models/fruit-teacher",
            classes=CLASSES,
        )

    def check(self, name: str) -> None:
        if not name.startswith(FRUIT):
            raise NotFound(f"student {name} does not exist", resource=name)

    async def GetStudent(self, request: Any, context: Any) -> students.GetStudentResponse:
        self.check(request.name)
        return students.GetStudentResponse(student=self.student())

    async def ListStudents(self, request: Any, context: Any) -> students.ListStudentsResponse:
        return students.ListStudentsResponse(students=[self.student()])

    async def GetStudentVersion(self, request: Any, context: Any) -> Any:
        self.check(request.name)
        return students.GetStudentVersionResponse(version=self.version)

    async def TuneStudent(self, request: Any, context: Any) -> students.TuneStudentResponse:
        self.check(request.student)
        self.world.calls.append(request)
        fake_history.check_head(request)
        for edit in request.edits:
            if edit.label not in CLASSES or edit.concept not in CONCEPTS:
                raise InvalidInput("no such class or concept", field="edits")
        tuned = students.StudentVersion(
            name=f"{FRUIT}/versions/2",
            effects=[effect(e) for e in request.edits],
            changes=changes(),
        )
        return students.TuneStudentResponse(
            version=tuned, flipped_items=3, warnings=["helps Pink-Lady, hurts Apple"]
        )

    async def UndoTuning(self, request: Any, context: Any) -> students.UndoTuningResponse:
        return students.UndoTuningResponse(version=self.version)

    async def ListStudentEvents(self, request: Any, context: Any) -> Any:
        edit = student_pb2.ConceptEdit(label="Pink-Lady", concept="red skin", factor=2)
        event = students.StudentEvent(
            sequence=1, kind="tuned", version=f"{FRUIT}/versions/2", effects=[effect(edit)]
        )
        return students.ListStudentEventsResponse(events=[event])

    async def CompareStudentVersions(self, request: Any, context: Any) -> Any:
        self.world.calls.append(request)
        difference = students.WeightDifference(
            label="Apple", concept="green", first_weight=-0.2, second_weight=0.1
        )
        metrics = {"fidelity": student_pb2.Estimate(value=0.9, low=0.8, high=0.95)}
        return students.CompareStudentVersionsResponse(
            differences=[difference], first_metrics=metrics, second_metrics=metrics
        )

    async def PromoteStudentVersion(self, request: Any, context: Any) -> Any:
        self.world.calls.append(request)
        number = {"previous": "1", "head": "2"}.get(request.name.rsplit("/", 1)[-1], "9")
        return students.PromoteStudentVersionResponse(student=self.student(number))

    async def PredictImages(self, request: Any, context: Any) -> students.PredictImagesResponse:
        self.check(request.student)
        self.world.calls.append(request)
        if len(request.items) > BATCH:
            raise InvalidInput(f"items: {len(request.items)} is above {BATCH}", field="items")
        return students.PredictImagesResponse(
            results=[predicted(item) for item in request.items],
            classes=CLASSES,
            version=f"{FRUIT}/versions/1",
        )

    async def ExplainImages(self, request: Any, context: Any) -> students.ExplainImagesResponse:
        found = student_pb2.Explanation(label="Apple", logit=1.5, intercept=0.5, rest=0.25)
        found.contributions.add(
            concept="red skin", contribution=0.75, weight=0.41, presence=0.2, region=1
        )
        whole = students.RegionBox(right=1, bottom=1)
        part = students.RegionBox(left=0.7, top=0.7, right=1, bottom=1)
        results = [
            students.ImageExplanation(item_id=i.item_id, explanation=found, boxes=[whole, part])
            for i in request.items
        ]
        return students.ExplainImagesResponse(results=results)

    async def ListConceptExamples(self, request: Any, context: Any) -> Any:
        image = self.world.put(photo(3))
        item = students.DatasetItemRef(item_id="a.jpg", digest=image.digest)
        box = students.RegionBox(left=0.2, top=0.1, right=0.6, bottom=0.7)
        examples = [
            students.ConceptExample(concept=c, item=item, presence=0.3, box=box)
            for c in request.concepts
        ]
        presences = fake_history.presences(request.concepts)
        return students.ListConceptExamplesResponse(examples=examples, presences=presences)

    async def ExportStudent(self, request: Any, context: Any) -> students.ExportStudentResponse:
        self.world.calls.append(request)
        blob = self.world.put(b"weights" * 1000)
        file = student_pb2.ExportedFile(file_name="../student.safetensors", blob=blob)
        return students.ExportStudentResponse(files=[file])


class Blobs(students_pb2_grpc.BlobServiceServicer):
    def __init__(self, world: World) -> None:
        self.world = world

    async def ReadBlob(self, request: Any, context: Any) -> AsyncIterator[Any]:
        data = self.world.blobs.get(request.digest)
        if data is None:
            raise NotFound(f"blob {request.digest} does not exist")
        for start in range(0, len(data), 1000):
            yield students.ReadBlobResponse(chunk=data[start : start + 1000])


def status(code: int, message: str) -> status_pb2.Status:
    """Return a status."""
    return status_pb2.Status(code=code, message=message)


def effect(edit: student_pb2.ConceptEdit) -> student_pb2.EditEffect:
    """Return the effect of an edit."""
    return student_pb2.EditEffect(
        edit=edit, weight_before=0.41, weight_after=0.97, box_low=0.82, box_high=1.23
    )


def changes() -> list[student_pb2.MetricChange]:
    """Return the changes of a tuning."""
    gain = student_pb2.Estimate(value=0.031, low=0.004, high=0.058)
    none = student_pb2.Estimate(value=-0.001, low=-0.01, high=0.008)
    names = ("fidelity", "recall/Pink-Lady", "recall/Apple")
    return [student_pb2.MetricChange(metric=m, change=gain, random_change=none) for m in names]


def predicted(item: items_pb2.ImageInput) -> student_pb2.PredictResult:
    """Return a prediction, or an error for bytes that are no JPEG."""
    if not item.data.startswith(b"\xff\xd8"):
        error = status(code_pb2.INVALID_ARGUMENT, "not an image")
        return student_pb2.PredictResult(item_id=item.item_id, error=error)
    values = np.array([0.25, 0.75], np.float32)
    answer = student_pb2.Prediction(label="Pink-Lady", probabilities=tensors.to_message(values))
    return student_pb2.PredictResult(item_id=item.item_id, prediction=answer)


@contextmanager
def serve(jobs_of: Callable[[World], Jobs] = Jobs) -> Iterator[World]:
    """Run the server in a thread of its own until the block ends."""
    world, started = World(), threading.Event()
    loop = asyncio.new_event_loop()
    stopping = asyncio.Event()

    async def run() -> None:
        server = grpc.aio.server(interceptors=[ErrorInterceptor()])
        info_pb2_grpc.add_InfoServiceServicer_to_server(Info(), server)
        datasets_pb2_grpc.add_DatasetServiceServicer_to_server(Datasets(world), server)
        jobs_pb2_grpc.add_DistillationServiceServicer_to_server(jobs_of(world), server)
        students_pb2_grpc.add_StudentsServiceServicer_to_server(Students(world), server)
        students_pb2_grpc.add_BlobServiceServicer_to_server(Blobs(world), server)
        models_pb2_grpc.add_ModelServiceServicer_to_server(fake_language.Models(world), server)
        world.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        started.set()
        await stopping.wait()
        await server.stop(0)

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()))
    thread.start()
    started.wait(30)
    try:
        yield world
    finally:
        loop.call_soon_threadsafe(stopping.set)
        thread.join()
        loop.close()
