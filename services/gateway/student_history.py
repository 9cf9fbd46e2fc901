"""What changes a student: tuning, undo, another head, names of versions, promotion."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from google.protobuf.message import Message
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

M = TypeVar("M", bound=Message)
MAX_EDITS = 100
MAX_NAME_CHARACTERS = 100
_REFIT_S = 300.0


class Repeatable(Protocol):
    """A request that can be sent again without doing its work twice."""

    @property
    def request_id(self) -> str: ...

    def SerializeToString(self, *, deterministic: bool = False) -> bytes: ...


class HistoryRpcs(StudentAccess):
    """TuneStudent, UndoTuning, SetStudentHead, RenameStudentVersion, PromoteStudentVersion."""

    async def TuneStudent(
        self, request: pb.TuneStudentRequest, context: Context
    ) -> pb.TuneStudentResponse:
        project, _ = names.parse(request.student, "students", field="student")
        old = await asyncio.to_thread(self._answered, project, request)
        if old is not None:
            return pb.TuneStudentResponse.FromString(old)
        student, base = await self._version(request.student, request.base_version, "head")
        if request.expected_head:
            _, seen = await self._version(request.student, request.expected_head, "")
            students.check_head(student, seen.number)
        file = await self._file(student, base)
        _check_edits(request.edits, file)
        refit = await self._peers.ask(
            self._peers.student.Refit,
            student_pb2.RefitRequest(
                project=student.project, student=shown.ref_of(base), edits=request.edits
            ),
            timeout_s=_REFIT_S,
        )
        return await self._once(
            (student.project, student.student_id),
            request,
            pb.TuneStudentResponse,
            lambda session, locked: _keep_tuned(
                session, locked, request, (student.head, base), refit
            ),
        )

    async def UndoTuning(
        self, request: pb.UndoTuningRequest, context: Context
    ) -> pb.UndoTuningResponse:
        def work(session: Session, student: StudentRow) -> pb.UndoTuningResponse:
            _check_expected(session, student, request.expected_head)
            version = students.undo(session, student, shown.command(student, "undo"))
            return pb.UndoTuningResponse(version=shown.version_message(student, version))

        project, student_id = names.parse(request.student, "students", field="student")
        return await self._once((project, student_id), request, pb.UndoTuningResponse, work)

    async def SetStudentHead(
        self, request: pb.SetStudentHeadRequest, context: Context
    ) -> pb.SetStudentHeadResponse:
        def work(session: Session, student: StudentRow) -> pb.SetStudentHeadResponse:
            _check_expected(session, student, request.expected_head)
            row = students.resolve(session, student, request.version, "")
            told = shown.command(student, "checkout", str(row.number))
            students.set_head(session, student, row, told)
            return pb.SetStudentHeadResponse(version=shown.version_message(student, row))

        project, student_id = names.parse(request.student, "students", field="student")
        if not request.version:
            raise InvalidInput("version: is required", field="version")
        return await self._once((project, student_id), request, pb.SetStudentHeadResponse, work)

    async def RenameStudentVersion(
        self, request: pb.RenameStudentVersionRequest, context: Context
    ) -> pb.RenameStudentVersionResponse:
        def work(session: Session, student: StudentRow) -> pb.RenameStudentVersionResponse:
            row = students.resolve(session, student, version, "")
            told = shown.command(student, "rename", str(row.number), name)
            students.rename(session, student, row, name, told)
            return pb.RenameStudentVersionResponse(version=shown.version_message(student, row))

        project, student_id, version = names.parse(request.name, "students", "versions")
        name = _checked_name(request.display_name)
        made = pb.RenameStudentVersionResponse
        return await self._once((project, student_id), request, made, work)

    async def PromoteStudentVersion(
        self, request: pb.PromoteStudentVersionRequest, context: Context
    ) -> pb.PromoteStudentVersionResponse:
        def work(session: Session, student: StudentRow) -> pb.PromoteStudentVersionResponse:
            row = students.resolve(session, student, version, "")
            told = shown.command(student, "promote", str(row.number))
            students.promote(session, student, row, told)
            return pb.PromoteStudentVersionResponse(student=shown.student_message(student))

        project, student_id, version = names.parse(request.name, "students", "versions")
        made = pb.PromoteStudentVersionResponse
        return await self._once((project, student_id), request, made, work)

    def _answered(self, project: str, request: Repeatable) -> bytes | None:
        with self._store.read() as session:
            return answered(session, *_key(project, request))

    async def _once(
        self,
        name: tuple[str, str],
        request: Repeatable,
        made: type[M],
        work: Callable[[Session, StudentRow], M],
    ) -> M:
        """Do `work` with the student locked, or return what an earlier call of this id got."""

        def change(session: Session) -> M:
            key = _key(name[0], request)
            student = students.find(session, *name, lock=True)
            if (old := answered(session, *key)) is not None:
                return made.FromString(old)
            response = work(session, student)
            record(session, *key, response=response.SerializeToString())
            return response

        return await asyncio.to_thread(self._store.change, change)


def _check_expected(session: Session, student: StudentRow, expected: str) -> None:
    """Raise HeadMoved where a head was named and the student has another by now."""
    if expected:
        students.check_head(student, students.resolve(session, student, expected, "").number)


def _key(project: str, request: Repeatable) -> tuple[str, str, str, bytes]:
    """What an answer is kept under: project, request_id, method and the request's bytes."""
    method = type(request).__name__.removesuffix("Request")
    return project, request.request_id, method, request.SerializeToString(deterministic=True)


def _keep_tuned(
    session: Session,
    student: StudentRow,
    request: pb.TuneStudentRequest,
    seen: tuple[int, VersionRow],
    refit: student_pb2.RefitResponse,
) -> pb.TuneStudentResponse:
    """Add the version that a refit made; `seen` is the head of then and the version tuned."""
    head, base = seen
    tuned = students.Tuned(
        base=base.number,
        weights_digest=refit.student.weights_digest,
        card_digest=refit.student.card_digest,
        effects=refit.effects,
        changes=refit.changes,
        description=shown.tune_command(
            student, request.edits, base.number if base.number != head else 0
        ),
    )
    version = students.add_tuned(session, student, head, tuned)
    session.flush()
    return pb.TuneStudentResponse(
        version=shown.version_message(student, version),
        flipped_items=refit.flipped_items,
        warnings=refit.warnings,
    )


def _checked_name(text: str) -> str:
    """Return a name for people without blanks around it. Raises InvalidInput."""
    name = text.strip()
    if len(name) > MAX_NAME_CHARACTERS or not name.isprintable():
        raise InvalidInput(
            f"display_name: at most {MAX_NAME_CHARACTERS} characters in one line",
            field="display_name",
        )
    return name


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
