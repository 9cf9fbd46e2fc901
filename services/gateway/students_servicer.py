"""StudentsService: list, tune, measure, promote, predict, explain and export students."""

from __future__ import annotations

import asyncio

from stillhouse.concepts.v1 import concepts_pb2
from stillhouse.gateway.v1 import students_pb2 as pb
from stillhouse.gateway.v1 import students_pb2_grpc
from stillhouse.student.v1 import student_pb2

from services.common import inputs, names
from services.common.errors import InvalidInput
from services.common.interceptors import Context
from services.gateway import student_messages as shown
from services.gateway import students
from services.gateway.paging import page
from services.gateway.store import StudentRow, VersionRow
from services.gateway.student_examples import ExampleRpcs
from services.gateway.student_history import HistoryRpcs
from services.gateway.student_measures import MeasureRpcs

_EXPORT_S = 600.0


class StudentsServicer(
    HistoryRpcs, MeasureRpcs, ExampleRpcs, students_pb2_grpc.StudentsServiceServicer
):
    """Serves StudentsService over the tables, the blob store and the peers."""

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

    async def PredictImages(
        self, request: pb.PredictImagesRequest, context: Context
    ) -> pb.PredictImagesResponse:
        inputs.check_batch(request.items, limit=self._max_batch_items)
        student, row, ready = await self._serving(request.student, request.version, "promoted")
        results, timings = await self._calls.predict(ready, request.items)
        return pb.PredictImagesResponse(
            results=results,
            classes=ready.file.classes,
            version=students.version_name(student, row.number),
            timings=timings,
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
        explain = self._calls.explain(ready, request.items, request.label, request.top)
        results, timings = await explain
        version = students.version_name(student, row.number)
        return pb.ExplainImagesResponse(results=results, version=version, timings=timings)

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

    def _with_weights(self, student: StudentRow, row: VersionRow) -> pb.StudentVersion:
        file = self._files.load(student.project, row.weights_digest, row.card_digest)
        return shown.version_message(student, row, file)
