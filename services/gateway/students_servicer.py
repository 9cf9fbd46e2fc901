"""StudentsService: inspect, tune, undo, compare, promote, predict, explain and export students."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
from sqlalchemy.orm import Session
from stillhouse.concepts.v1 import concepts_pb2
from stillhouse.gateway.v1 import students_pb2 as pb
from stillhouse.gateway.v1 import students_pb2_grpc
from stillhouse.student.v1 import student_pb2

from services.common import inputs, names
from services.common.blobs import BlobStore
from services.common.catalogue import Catalogue
from services.common.errors import InvalidInput
from services.common.interceptors import Context
from services.common.manifest import SPLITS
from services.gateway import student_messages as shown
from services.gateway import students
from services.gateway.concept_examples import strongest
from services.gateway.paging import page
from services.gateway.peers import Peers
from services.gateway.region_boxes import input_of
from services.gateway.store import Store, StudentRow, VersionRow, answered, record
from services.gateway.student_calls import Serving, StudentCalls, serving
from services.gateway.student_files import StudentFile, StudentFiles

MAX_EDITS = 100
MAX_EXAMPLE_CONCEPTS = 256
MAX_EXAMPLES = 100
MAX_DIFFERENCES = 1000
_REFIT_S = 300.0
_EVALUATE_S = 120.0
_EXPORT_S = 600.0


class StudentsServicer(students_pb2_grpc.StudentsServiceServicer):
    """Serves StudentsService over the tables, the blob store and the peers."""

    def __init__(
        self,
        store: Store,
        blobs: BlobStore,
        peers: Peers,
        catalogue: Catalogue,
        *,
        max_batch_items: int = 256,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._peers = peers
        self._catalogue = catalogue
        self._files = StudentFiles(blobs)
        self._calls = StudentCalls(peers, blobs, catalogue)
        self._max_batch_items = max_batch_items

    async def GetStudent(
        self, request: pb.GetStudentRequest, context: Context
    ) -> pb.GetStudentResponse:
        row = await self._student(request.name, "name")
        return pb.GetStudentResponse(student=shown.student_message(row))

    async def ListStudents(
        self, request: pb.ListStudentsRequest, context: Context
    ) -> pb.ListStudentsResponse:
        names.check_id(request.project, field="project")
        wanted = page(request.page_size, request.page_token, "students", request.project)
        rows, token = await asyncio.to_thread(
            students.list_page, self._store, request.project, wanted
        )
        found = [shown.student_message(row) for row in rows]
        return pb.ListStudentsResponse(students=found, next_page_token=token)

    async def GetStudentVersion(
        self, request: pb.GetStudentVersionRequest, context: Context
    ) -> pb.GetStudentVersionResponse:
        student, row = await self._named_version(request.name)
        message = await asyncio.to_thread(self._with_weights, student, row)
        return pb.GetStudentVersionResponse(version=message)

    async def ListStudentVersions(
        self, request: pb.ListStudentVersionsRequest, context: Context
    ) -> pb.ListStudentVersionsResponse:
        student = await self._student(request.student, "student")
        wanted = page(request.page_size, request.page_token, "versions", request.student)
        rows, token = await asyncio.to_thread(students.versions_page, self._store, student, wanted)
        found = [shown.version_message(student, row) for row in rows]
        return pb.ListStudentVersionsResponse(versions=found, next_page_token=token)

    async def ListStudentEvents(
        self, request: pb.ListStudentEventsRequest, context: Context
    ) -> pb.ListStudentEventsResponse:
        student = await self._student(request.student, "student")
        wanted = page(request.page_size, request.page_token, "events", request.student)
        rows, token = await asyncio.to_thread(students.events_page, self._store, student, wanted)
        found = [shown.event_message(student, row) for row in rows]
        return pb.ListStudentEventsResponse(events=found, next_page_token=token)

    async def TuneStudent(
        self, request: pb.TuneStudentRequest, context: Context
    ) -> pb.TuneStudentResponse:
        old = await asyncio.to_thread(self._answered, request.student, "TuneStudent", request)
        if old is not None:
            return pb.TuneStudentResponse.FromString(old)
        student, base = await self._version(request.student, request.base_version, "head")
        file = await self._file(student, base)
        _check_edits(request.edits, file)
        refit = await self._peers.ask(
            self._peers.student.Refit,
            student_pb2.RefitRequest(
                project=student.project, student=shown.ref_of(base), edits=request.edits
            ),
            timeout_s=_REFIT_S,
        )
        return await asyncio.to_thread(
            self._store.change,
            lambda session: self._keep_tuned(session, request, student, base, refit),
        )

    async def UndoTuning(
        self, request: pb.UndoTuningRequest, context: Context
    ) -> pb.UndoTuningResponse:
        return await asyncio.to_thread(
            self._store.change, lambda session: self._undo(session, request)
        )

    async def PromoteStudentVersion(
        self, request: pb.PromoteStudentVersionRequest, context: Context
    ) -> pb.PromoteStudentVersionResponse:
        return await asyncio.to_thread(
            self._store.change, lambda session: self._promote(session, request)
        )

    async def CompareStudentVersions(
        self, request: pb.CompareStudentVersionsRequest, context: Context
    ) -> pb.CompareStudentVersionsResponse:
        split = request.split or "val"
        if split not in SPLITS:
            raise InvalidInput(f"split: {split[:20]!r} is none of {SPLITS}", field="split")
        for field in ("first_version", "second_version"):
            if not getattr(request, field):
                raise InvalidInput(f"{field}: is required", field=field)
        student, first = await self._version(request.student, request.first_version, "")
        _, second = await self._version(request.student, request.second_version, "")
        one, two = await asyncio.gather(
            self._evaluate(student, first, split), self._evaluate(student, second, split)
        )
        files = await asyncio.gather(self._file(student, first), self._file(student, second))
        return pb.CompareStudentVersionsResponse(
            differences=differences(*files),
            first_metrics=dict(one.metrics),
            second_metrics=dict(two.metrics),
        )

    async def PredictImages(
        self, request: pb.PredictImagesRequest, context: Context
    ) -> pb.PredictImagesResponse:
        inputs.check_batch(request.items, limit=self._max_batch_items)
        student, row, ready = await self._serving(request.student, request.version, "promoted")
        results = await self._calls.predict(ready, request.items)
        return pb.PredictImagesResponse(
            results=results,
            classes=ready.file.classes,
            version=students.version_name(student, row.number),
        )

    async def ExplainImages(
        self, request: pb.ExplainImagesRequest, context: Context
    ) -> pb.ExplainImagesResponse:
        inputs.check_batch(request.items, limit=self._max_batch_items)
        if request.top < 0:
            raise InvalidInput("top: must not be negative", field="top")
        student, row, ready = await self._serving(request.student, request.version, "head")
        if request.label:
            ready.file.class_index(request.label)
        results = await self._calls.explain(ready, request.items, request.label, request.top)
        version = students.version_name(student, row.number)
        return pb.ExplainImagesResponse(results=results, version=version)

    async def ListConceptExamples(
        self, request: pb.ListConceptExamplesRequest, context: Context
    ) -> pb.ListConceptExamplesResponse:
        if not 1 <= len(request.concepts) <= MAX_EXAMPLE_CONCEPTS:
            raise InvalidInput(
                f"concepts: 1 to {MAX_EXAMPLE_CONCEPTS} are needed", field="concepts"
            )
        if request.page_size < 0:
            raise InvalidInput("page_size: must not be negative", field="page_size")
        student, _, ready = await self._serving(request.student, "", "head")
        examples = await asyncio.to_thread(
            strongest,
            self._blobs,
            student.project,
            ready.file,
            list(dict.fromkeys(request.concepts)),
            label=request.label,
            count=min(request.page_size or 4, MAX_EXAMPLES),
            spec=input_of(self._catalogue, student.encoder.rsplit("/", 1)[-1]),
        )
        return pb.ListConceptExamplesResponse(examples=examples)

    async def ExportStudent(
        self, request: pb.ExportStudentRequest, context: Context
    ) -> pb.ExportStudentResponse:
        student, row = await self._named_version(request.name)
        export = student_pb2.ExportRequest(
            project=student.project, student=shown.ref_of(row), format=request.format
        )
        if request.format == student_pb2.EXPORT_FORMAT_ONNX:
            encoder = await self._peers.ask(
                self._peers.concepts.ExportEncoder,
                concepts_pb2.ExportEncoderRequest(encoder=student.encoder),
                timeout_s=_EXPORT_S,
            )
            export.encoder_onnx.CopyFrom(encoder.onnx)
        response = await self._peers.ask(self._peers.student.Export, export, timeout_s=_EXPORT_S)
        return pb.ExportStudentResponse(files=response.files)

    # What follows reads and writes on threads.

    async def _student(self, name: str, field: str) -> StudentRow:
        project, student_id = names.parse(name, "students", field=field)
        return await asyncio.to_thread(students.get, self._store, project, student_id)

    async def _version(
        self, name: str, version: str, default: str
    ) -> tuple[StudentRow, VersionRow]:
        project, student_id = names.parse(name, "students", field="student")
        return await asyncio.to_thread(self._read_version, project, student_id, version, default)

    async def _named_version(self, name: str) -> tuple[StudentRow, VersionRow]:
        project, student_id, version = names.parse(name, "students", "versions")
        return await asyncio.to_thread(self._read_version, project, student_id, version, "")

    async def _serving(
        self, name: str, version: str, default: str
    ) -> tuple[StudentRow, VersionRow, Serving]:
        student, row = await self._version(name, version, default)
        file = await self._file(student, row)
        return student, row, serving(student, shown.ref_of(row), file)

    async def _file(self, student: StudentRow, row: VersionRow) -> StudentFile:
        return await asyncio.to_thread(
            self._files.load, student.project, row.weights_digest, row.card_digest
        )

    async def _evaluate(
        self, student: StudentRow, row: VersionRow, split: str
    ) -> student_pb2.EvaluateResponse:
        request = student_pb2.EvaluateRequest(
            project=student.project, student=shown.ref_of(row), split=split
        )
        return await self._peers.ask(self._peers.student.Evaluate, request, timeout_s=_EVALUATE_S)

    def _read_version(
        self, project: str, student_id: str, version: str, default: str
    ) -> tuple[StudentRow, VersionRow]:
        with self._store.read() as session:
            student = students.find(session, project, student_id)
            return student, students.resolve(session, student, version, default)

    def _with_weights(self, student: StudentRow, row: VersionRow) -> pb.StudentVersion:
        file = self._files.load(student.project, row.weights_digest, row.card_digest)
        return shown.version_message(student, row, file)

    def _answered(self, name: str, method: str, request: pb.TuneStudentRequest) -> bytes | None:
        project, _ = names.parse(name, "students", field="student")
        body = request.SerializeToString(deterministic=True)
        with self._store.read() as session:
            return answered(session, project, request.request_id, method, body)

    def _keep_tuned(
        self,
        session: Session,
        request: pb.TuneStudentRequest,
        student: StudentRow,
        base: VersionRow,
        refit: student_pb2.RefitResponse,
    ) -> pb.TuneStudentResponse:
        body = request.SerializeToString(deterministic=True)
        key = (student.project, request.request_id, "TuneStudent", body)
        head, branch = student.head, base.number if base.number != student.head else 0
        locked = students.find(session, student.project, student.student_id, lock=True)
        if (old := answered(session, *key)) is not None:
            return pb.TuneStudentResponse.FromString(old)
        tuned = students.Tuned(
            base=base.number,
            weights_digest=refit.student.weights_digest,
            card_digest=refit.student.card_digest,
            effects=refit.effects,
            changes=refit.changes,
            description=shown.tune_command(student, request.edits, branch),
        )
        version = students.add_tuned(session, locked, head, tuned)
        session.flush()
        response = pb.TuneStudentResponse(
            version=shown.version_message(locked, version),
            flipped_items=refit.flipped_items,
            warnings=refit.warnings,
        )
        record(session, *key, response=response.SerializeToString())
        return response

    def _undo(self, session: Session, request: pb.UndoTuningRequest) -> pb.UndoTuningResponse:
        project, student_id = names.parse(request.student, "students", field="student")
        body = request.SerializeToString(deterministic=True)
        key = (project, request.request_id, "UndoTuning", body)
        student = students.find(session, project, student_id, lock=True)
        if (old := answered(session, *key)) is not None:
            return pb.UndoTuningResponse.FromString(old)
        version = students.undo(session, student, shown.command(student, "undo"))
        message = shown.version_message(student, version)
        response = pb.UndoTuningResponse(version=message)
        record(session, *key, response=response.SerializeToString())
        return response

    def _promote(
        self, session: Session, request: pb.PromoteStudentVersionRequest
    ) -> pb.PromoteStudentVersionResponse:
        project, student_id, version = names.parse(request.name, "students", "versions")
        body = request.SerializeToString(deterministic=True)
        key = (project, request.request_id, "PromoteStudentVersion", body)
        student = students.find(session, project, student_id, lock=True)
        if (old := answered(session, *key)) is not None:
            return pb.PromoteStudentVersionResponse.FromString(old)
        row = students.resolve(session, student, version, "")
        students.promote(session, student, row, shown.command(student, "promote", str(row.number)))
        message = shown.student_message(student)
        response = pb.PromoteStudentVersionResponse(student=message)
        record(session, *key, response=response.SerializeToString())
        return response


def differences(first: StudentFile, second: StudentFile) -> list[pb.WeightDifference]:
    """Return the weights in which two students differ, largest difference first, at most 1,000.

    Students of two jobs may have other concepts; a concept that one lacks has the weight 0 there.
    """
    one, two = _weights(first), _weights(second)
    keys = {key for key in one.keys() | two.keys() if one.get(key, 0.0) != two.get(key, 0.0)}
    ordered = sorted(keys, key=lambda key: (-abs(one.get(key, 0.0) - two.get(key, 0.0)), key))
    return [
        pb.WeightDifference(
            label=label,
            concept=concept,
            first_weight=one.get((label, concept), 0.0),
            second_weight=two.get((label, concept), 0.0),
        )
        for label, concept in ordered[:MAX_DIFFERENCES]
    ]


def _weights(file: StudentFile) -> dict[tuple[str, str], float]:
    rows, columns = np.nonzero(file.weight)
    classes, concepts = file.classes, file.concepts
    return {
        (classes[row], concepts[column]): float(file.weight[row, column])
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
    }


def _check_edits(edits: Sequence[student_pb2.ConceptEdit], file: StudentFile) -> None:
    """Raise InvalidInput for edits that no refit could apply, with the nearest names."""
    if not 1 <= len(edits) <= MAX_EDITS:
        raise InvalidInput(f"edits: 1 to {MAX_EDITS} are needed", field="edits")
    for at, edit in enumerate(edits):
        file.class_index(edit.label, field=f"edits[{at}].label")
        file.concept_index(edit.concept, field=f"edits[{at}].concept")
        if not 1 < edit.factor <= 100:
            raise InvalidInput(
                f"edits[{at}].factor: {edit.factor:g} must be more than 1 and at most 100",
                field=f"edits[{at}].factor",
            )
        if edit.direction not in (student_pb2.DIRECTION_UP, student_pb2.DIRECTION_DOWN):
            raise InvalidInput(f"edits[{at}].direction: is required", field="edits.direction")
