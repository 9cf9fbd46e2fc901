"""Measuring students: a version's metrics and data, and two versions side by side."""

from __future__ import annotations

import asyncio

import numpy as np
from stillhouse.gateway.v1 import students_pb2 as pb
from stillhouse.student.v1 import student_pb2

from services.common.errors import InvalidInput
from services.common.interceptors import Context
from services.common.manifest import SPLITS
from services.gateway import student_messages as shown
from services.gateway import students
from services.gateway.store import StudentRow, VersionRow
from services.gateway.student_access import StudentAccess
from services.gateway.student_files import StudentFile

MAX_DIFFERENCES = 1000
_EVALUATE_S = 120.0


class MeasureRpcs(StudentAccess):
    """EvaluateStudentVersion, InspectStudentVersion and CompareStudentVersions."""

    async def EvaluateStudentVersion(
        self, request: pb.EvaluateStudentVersionRequest, context: Context
    ) -> pb.EvaluateStudentVersionResponse:
        split = _checked_split(request.split)
        student, row = await self._named_version(request.name)
        found = await self._evaluate(student, row, split)
        return pb.EvaluateStudentVersionResponse(
            metrics=dict(found.metrics),
            undefined=dict(found.undefined),
            item_count=found.item_count,
            nec=found.nec,
        )

    async def InspectStudentVersion(
        self, request: pb.InspectStudentVersionRequest, context: Context
    ) -> pb.InspectStudentVersionResponse:
        student, row = await self._named_version(request.name)
        data = await self._peers.ask(
            self._peers.student.Inspect,
            student_pb2.InspectRequest(project=student.project, student=shown.ref_of(row)),
            timeout_s=_EVALUATE_S,
        )
        version = students.version_name(student, row.number)
        return pb.InspectStudentVersionResponse(data=data, version=version)

    async def CompareStudentVersions(
        self, request: pb.CompareStudentVersionsRequest, context: Context
    ) -> pb.CompareStudentVersionsResponse:
        split = _checked_split(request.split)
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

    async def _evaluate(
        self, student: StudentRow, row: VersionRow, split: str
    ) -> student_pb2.EvaluateResponse:
        request = student_pb2.EvaluateRequest(
            project=student.project, student=shown.ref_of(row), split=split
        )
        return await self._peers.ask(self._peers.student.Evaluate, request, timeout_s=_EVALUATE_S)


def _checked_split(split: str) -> str:
    """Return the split; empty is train and val. Raises InvalidInput for an unknown one."""
    if split not in ("", *SPLITS):
        raise InvalidInput(f"split: {split[:20]!r} is none of {SPLITS}", field="split")
    return split


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
