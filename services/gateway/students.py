"""Students: a tree of immutable versions, with a head that edits move and a promoted version.

Nothing is ever deleted or overwritten: tuning adds a version, undoing moves the head back to its
parent, and every
change is an event. So `undo` restores exact weights, and branches are versions with one parent.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from google.protobuf import json_format
from google.protobuf.message import Message
from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session
from stillhouse.student.v1 import student_pb2

from services.common import names
from services.common.errors import HeadMoved, InvalidInput, NotFound, Precondition
from services.gateway.paging import Page
from services.gateway.store import Store, StudentEventRow, StudentRow, VersionRow, by_name

_BY_NAME = by_name(StudentRow, StudentRow.student_id)


@dataclass(frozen=True)
class Made:
    """What a job made: names of its sources and the digests of the student's files."""

    job: str
    dataset: str
    teacher: str
    encoder: str
    classes: tuple[str, ...]
    weights_digest: str
    card_digest: str
    report_digest: str
    description: str
    """The command that repeats the job, or a sentence."""


@dataclass(frozen=True)
class Tuned:
    """What a refit made of version `base`."""

    base: int
    weights_digest: str
    card_digest: str
    effects: Sequence[student_pb2.EditEffect]
    changes: Sequence[student_pb2.MetricChange]
    description: str


def publish(store: Store, project: str, student_id: str, made: Made) -> VersionRow:
    """Add a job's student as a version and make it the head; the first version is promoted as well.

    Publishing the same job again returns the version already there.
    """
    names.check_id(student_id, field="student_id")
    return store.change(lambda session: _publish(session, project, student_id, made))


def _publish(session: Session, project: str, student_id: str, made: Made) -> VersionRow:
    student = session.scalars(_student(project, student_id).with_for_update()).first()
    if student is None:
        student = StudentRow(
            project=project, student_id=student_id, head=1, promoted=1, dataset=made.dataset
        )
    elif (old := _of_job(session, student, made.job)) is not None:
        return old
    student.dataset, student.teacher, student.encoder = made.dataset, made.teacher, made.encoder
    student.classes_json = json.dumps(made.classes)
    session.add(student)
    session.flush()
    version = VersionRow(
        student_pk=student.pk,
        number=_next_number(session, student),
        job=made.job,
        weights_digest=made.weights_digest,
        card_digest=made.card_digest,
        report_digest=made.report_digest,
    )
    session.add(version)
    student.head = version.number
    log(session, student, "created", version.number, made.description)
    return version


def add_tuned(session: Session, student: StudentRow, head: int, tuned: Tuned) -> VersionRow:
    """Add a tuned version and make it the head.

    `head` is what the head was when the edit was computed. Raises HeadMoved where it has moved.
    """
    check_head(student, head)
    version = VersionRow(
        student_pk=student.pk,
        number=_next_number(session, student),
        parent=tuned.base,
        weights_digest=tuned.weights_digest,
        card_digest=tuned.card_digest,
        effects_json=_to_json(tuned.effects),
        changes_json=_to_json(tuned.changes),
    )
    session.add(version)
    student.head = version.number
    log(
        session,
        student,
        "tuned",
        version.number,
        tuned.description,
        effects_json=version.effects_json,
        changes_json=version.changes_json,
    )
    return version


def check_head(student: StudentRow, head: int) -> None:
    """Raise HeadMoved where the head is not version `head`."""
    if student.head != head:
        raise HeadMoved(
            f"{student.student_id} was changed meanwhile: its head is version {student.head}, it "
            f"was {head}; look at it and try again",
            head_version=version_name(student, student.head),
        )


def undo(session: Session, student: StudentRow, description: str) -> VersionRow:
    """Make the head's parent the head. Raises Precondition where the head has none."""
    head = session.get_one(VersionRow, (student.pk, student.head))
    if not head.parent:
        raise Precondition(
            f"version {head.number} of {student.student_id} comes from a job: nothing to undo"
        )
    student.head = head.parent
    log(session, student, "undone", head.parent, description)
    return session.get_one(VersionRow, (student.pk, head.parent))


def set_head(session: Session, student: StudentRow, version: VersionRow, description: str) -> None:
    """Make any version the head; one that is the head already changes nothing."""
    if version.number == student.head:
        return
    student.head = version.number
    log(session, student, "moved", version.number, description)


def rename(
    session: Session, student: StudentRow, version: VersionRow, name: str, description: str
) -> None:
    """Give a version a name for people, or with an empty one take it away."""
    if version.display_name == name:
        return
    version.display_name = name
    log(session, student, "renamed", version.number, description)


def promote(session: Session, student: StudentRow, version: VersionRow, description: str) -> None:
    """Set the version that Predict serves; the one served until now can be rolled back to."""
    if version.number == student.promoted:
        return
    student.previous, student.promoted = student.promoted, version.number
    log(session, student, "promoted", version.number, description)


def get(store: Store, project: str, student_id: str) -> StudentRow:
    """Return a student. Raises NotFound."""
    with store.read() as session:
        return find(session, project, student_id)


def get_many(store: Store, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], StudentRow]:
    """Return the students of these (project, student id)."""
    return cast("dict[tuple[str, str], StudentRow]", store.fetch_many(_BY_NAME, keys))


def find(session: Session, project: str, student_id: str, *, lock: bool = False) -> StudentRow:
    """Return a student's row, locked for a change where asked. Raises NotFound."""
    query = _student(project, student_id)
    row = session.scalars(query.with_for_update() if lock else query).first()
    if row is None:
        raise missing(project, student_id)
    return row


def missing(project: str, student_id: str) -> NotFound:
    """Return the error of a student that does not exist."""
    name = names.join(project, "students", student_id)
    return NotFound(f"there is no student {name}", resource=name)


def resolve(session: Session, student: StudentRow, text: str, default: str) -> VersionRow:
    """Return the version that `text` names: a number, an alias or a full name; empty is `default`.

    Aliases are `head`, `promoted` and `previous`. Raises InvalidInput, NotFound, Precondition.
    """
    alias = text or default
    if "/" in alias:
        project, student_id, alias = names.parse(alias, "students", "versions", field="version")
        if (project, student_id) != (student.project, student.student_id):
            raise InvalidInput(f"version: {text!r} is of another student", field="version")
    known = {"head": student.head, "promoted": student.promoted, "previous": student.previous}
    if alias == "previous" and not student.previous:
        raise Precondition(f"no version of {student.student_id} was promoted before this one")
    if alias not in known and not (alias.isascii() and alias.isdecimal() and len(alias) < 10):
        raise InvalidInput(
            f"version: {alias[:40]!r} is neither a number nor head, promoted or previous",
            field="version",
        )
    number = known[alias] if alias in known else int(alias)
    row = session.get(VersionRow, (student.pk, number))
    if row is None:
        raise NotFound(
            f"{student.student_id} has no version {number}", resource=version_name(student, number)
        )
    return row


def list_page(store: Store, project: str, page: Page) -> tuple[list[StudentRow], str]:
    """Return one page of a project's students, newest first, and the next page's token."""
    query = select(StudentRow).where(StudentRow.project == project)
    if page.position:
        query = query.where(StudentRow.pk < page.position)
    with store.read() as session:
        rows = session.scalars(query.order_by(StudentRow.pk.desc()).limit(page.size + 1)).all()
    return page.cut(rows, [row.pk for row in rows])


def versions_page(store: Store, student: StudentRow, page: Page) -> tuple[list[VersionRow], str]:
    """Return one page of a student's versions, oldest first, and the next page's token."""
    query = select(VersionRow).where(
        VersionRow.student_pk == student.pk, VersionRow.number > page.position
    )
    with store.read() as session:
        rows = session.scalars(query.order_by(VersionRow.number).limit(page.size + 1)).all()
    return page.cut(rows, [row.number for row in rows])


def events_page(store: Store, student: StudentRow, page: Page) -> tuple[list[StudentEventRow], str]:
    """Return one page of a student's events, oldest first, and the next page's token."""
    query = select(StudentEventRow).where(
        StudentEventRow.student_pk == student.pk, StudentEventRow.sequence > page.position
    )
    with store.read() as session:
        rows = session.scalars(query.order_by(StudentEventRow.sequence).limit(page.size + 1)).all()
    return page.cut(rows, [row.sequence for row in rows])


def version_name(student: StudentRow, number: int) -> str:
    """Return a version's resource name; empty for 0."""
    if not number:
        return ""
    return names.join(student.project, "students", student.student_id, "versions", str(number))


def log(
    session: Session,
    student: StudentRow,
    kind: str,
    version: int,
    description: str,
    *,
    effects_json: str = "[]",
    changes_json: str = "[]",
) -> None:
    """Add an event. The caller holds the student's row lock, so sequences have no gaps."""
    last = select(func.max(StudentEventRow.sequence)).where(
        StudentEventRow.student_pk == student.pk
    )
    session.add(
        StudentEventRow(
            student_pk=student.pk,
            sequence=(session.scalar(last) or 0) + 1,
            kind=kind,
            version=version,
            description=description,
            effects_json=effects_json,
            changes_json=changes_json,
        )
    )
    session.flush()


def _student(project: str, student_id: str) -> Select[StudentRow]:
    return select(StudentRow).where(
        StudentRow.project == project, StudentRow.student_id == student_id
    )


def _of_job(session: Session, student: StudentRow, job: str) -> VersionRow | None:
    query = select(VersionRow).where(VersionRow.student_pk == student.pk, VersionRow.job == job)
    return session.scalars(query).first()


def _next_number(session: Session, student: StudentRow) -> int:
    query = select(func.max(VersionRow.number)).where(VersionRow.student_pk == student.pk)
    return (session.scalar(query) or 0) + 1


def _to_json(messages: Sequence[Message]) -> str:
    return json.dumps([json_format.MessageToDict(message) for message in messages])
