"""What changes a student: tuning, undo, another head, names of versions, promotion."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from sqlalchemy.orm import Session
from stillhouse.gateway.v1 import students_pb2 as pb
from stillhouse.student.v1 import student_pb2

from services.common import names
from services.common.errors import InvalidInput
from services.common.interceptors import Context
from services.gateway import student_messages as shown
from services.gateway import students
from services.gateway.store import StudentRow, VersionRow, answered, record
from services.gateway.student_access import StudentAccess
from services.gateway.student_files import StudentFile

MAX_EDITS = 100
_REFIT_S = 300.0


class HistoryRpcs(StudentAccess):
    """TuneStudent, UndoTuning and PromoteStudentVersion."""

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
