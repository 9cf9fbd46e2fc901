"""Students, versions and events as messages, and edits as the command that repeats them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import numpy as np
from google.protobuf import json_format
from stillhouse.common.v1 import items_pb2
from stillhouse.gateway.v1 import students_pb2 as pb
from stillhouse.student.v1 import student_pb2

from services.common import names
from services.gateway.datasets.records import to_timestamp
from services.gateway.store import StudentEventRow, StudentRow, VersionRow
from services.gateway.student_files import StudentFile
from services.gateway.students import version_name

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./:+-]*")
_SPECIAL = re.compile(r'(["\\$`])')


def student_message(row: StudentRow) -> pb.Student:
    """Return the message of a student."""
    return pb.Student(
        name=names.join(row.project, "students", row.student_id),
        head_version=version_name(row, row.head),
        promoted_version=version_name(row, row.promoted),
        dataset=row.dataset,
        teacher=row.teacher,
        encoder=row.encoder,
        classes=json.loads(row.classes_json),
        create_time=to_timestamp(row.created),
    )


def version_message(
    student: StudentRow, row: VersionRow, file: StudentFile | None = None
) -> pb.StudentVersion:
    """Return the message of a version, with its weights where `file` is given."""
    message = pb.StudentVersion(
        name=version_name(student, row.number),
        parent=version_name(student, row.parent),
        job=row.job,
        student_ref=ref_of(row),
        effects=_effects(row.effects_json),
        changes=_changes(row.changes_json),
        class_concepts=class_concepts(file) if file else [],
        create_time=to_timestamp(row.created),
        display_name=row.display_name,
    )
    if row.report_digest:
        message.report.CopyFrom(items_pb2.BlobRef(digest=row.report_digest))
    return message


def event_message(student: StudentRow, row: StudentEventRow) -> pb.StudentEvent:
    """Return the message of an event."""
    return pb.StudentEvent(
        sequence=row.sequence,
        kind=row.kind,
        version=version_name(student, row.version),
        event_time=to_timestamp(row.created),
        description=row.description,
        effects=_effects(row.effects_json),
        changes=_changes(row.changes_json),
    )


def ref_of(row: VersionRow) -> student_pb2.StudentRef:
    """Return a version's student in the blob store."""
    return student_pb2.StudentRef(weights_digest=row.weights_digest, card_digest=row.card_digest)


def class_concepts(file: StudentFile) -> list[pb.ClassConcepts]:
    """Return the non-zero weights of every class, largest absolute influence first."""
    words = file.concepts
    found = []
    for row, label in enumerate(file.classes):
        columns = np.flatnonzero(file.weight[row])
        order = np.argsort(-np.abs(file.influence[row, columns]), kind="stable")
        weights = [
            pb.ConceptWeight(
                concept=words[column],
                weight=float(file.weight[row, column]),
                influence=float(file.influence[row, column]),
            )
            for column in columns[order]
        ]
        one = pb.ClassConcepts(label=label, intercept=float(file.bias[row]), concepts=weights)
        found.append(one)
    return found


def tune_command(
    student: StudentRow, edits: Sequence[student_pb2.ConceptEdit], base: int = 0
) -> str:
    """Return the command that repeats a tuning: `stillhouse students tune fruit --class ...`.

    The command takes one class and one factor; edits of several, made by API, are told in words,
    since applying them one after the other is not the same. `base` names the version where it was
    not the head.
    """
    if len({(edit.label, edit.factor) for edit in edits}) > 1:
        told = ", ".join(
            f"{edit.label} {_way(edit)} {quoted(edit.concept)} by {edit.factor:.12g}"
            for edit in edits
        )
        return f"tuned together: {told}"
    parts = ["stillhouse students tune", quoted(student.student_id)]
    parts += ["--class", quoted(edits[0].label)]
    for edit in edits:
        parts += [f"--{_way(edit)}", quoted(edit.concept)]
    parts += ["--factor", f"{edits[0].factor:.12g}"]
    if base:
        parts += ["--base", str(base)]
    return " ".join([*parts, *_project(student)])


def _way(edit: student_pb2.ConceptEdit) -> str:
    return "up" if edit.direction == student_pb2.DIRECTION_UP else "down"


def command(student: StudentRow, verb: str, *arguments: str) -> str:
    """Return `stillhouse students VERB STUDENT ARGUMENTS`."""
    words = ["stillhouse students", verb, quoted(student.student_id), *map(quoted, arguments)]
    return " ".join([*words, *_project(student)])


def quoted(text: str) -> str:
    """Return text as one word of a shell command."""
    if _PLAIN.fullmatch(text):
        return text
    return '"' + _SPECIAL.sub(r"\\\1", text) + '"'


def _project(student: StudentRow) -> list[str]:
    return [] if student.project == names.DEFAULT_PROJECT else ["--project", student.project]


def _effects(text: str) -> list[student_pb2.EditEffect]:
    return [json_format.ParseDict(one, student_pb2.EditEffect()) for one in json.loads(text)]


def _changes(text: str) -> list[student_pb2.MetricChange]:
    return [json_format.ParseDict(one, student_pb2.MetricChange()) for one in json.loads(text)]
