"""Stored students in the Open Inference Protocol: embeddings or presence in, logits out.

A student has no name here, as in the rest of this service: the model is the digest of its weights,
`WEIGHTS` or `PROJECT/WEIGHTS`, and the version the digest of its card. The gateway serves students
by name, on images.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from stillhouse.student.v1 import student_pb2

from services.common.blobs import check_digest
from services.common.errors import InvalidInput, StillhouseError, Unsupported, from_status
from services.common.inference.model import Answer, Listed, Model, TensorSpec
from services.common.inference.requests import InferCall
from services.common.inference.responses import Output
from services.common.inference.students import (
    LABEL,
    asks_contributions,
    contribution_outputs,
    explanations_of,
    prediction_outputs,
    predictions_of,
    student_specs,
    top_of,
)
from services.common.interceptors import Context
from services.common.names import DEFAULT_PROJECT, check_id
from services.common.presence import Presence
from services.common.tensors import Array, expect, to_message
from services.student import explain
from services.student.artefacts import Student
from services.student.library import Library

R = TypeVar("R")
EMBEDDINGS, PRESENCE = "embeddings", "presence"
_HOW = (
    f"send one of {EMBEDDINGS}, FP16 [N, regions, width] or [N, width], and {PRESENCE}, "
    "FP32 [N, concepts]"
)


@dataclass(frozen=True)
class StoredStudent(Model):
    """A student of a project, by digest."""

    project: str = ""
    student: Student | None = None


class StudentInference:
    """Concept students, as the library has them. Arithmetic runs in `pool`."""

    def __init__(self, library: Library, pool: ThreadPoolExecutor, max_items: int) -> None:
        self._library, self._pool, self._max_items = library, pool, max_items

    def name_of(self, name: str) -> str:
        """Return the name without the default project. Raises InvalidInput."""
        return _short(*_stored(name))

    async def find(self, name: str, version: str, context: Context) -> StoredStudent:
        """Read a student. Raises NotFound, InvalidInput."""
        project, ref = _reference(name, version)
        student = await self._in(lambda: self._library.student(project, ref))
        width = int(student.bank.text.shape[1])
        return StoredStudent(
            name=_short(project, ref.weights_digest),
            version=ref.card_digest,
            classes=tuple(student.classes),
            inputs=(TensorSpec(EMBEDDINGS, "FP16", (-1, -1, width)),),
            outputs=student_specs(len(student.classes)),
            project=project,
            student=student,
        )

    async def versions(self, model: StoredStudent, context: Context) -> Sequence[str]:
        """Return the one version there is."""
        return [model.version]

    async def infer(self, model: StoredStudent, call: InferCall, context: Context) -> Answer:
        """Predict and explain the items of a call."""
        student = model.student
        assert student is not None
        given = call.check_inputs([EMBEDDINGS, PRESENCE], how=_HOW)
        self._check_count(call, given)
        work = _from_embeddings if given == EMBEDDINGS else _from_presence
        outputs = await self._in(lambda: work(student, call))
        return Answer(model.version, call.shape(given)[0], outputs, model.classes)

    async def is_ready(self, name: str, version: str, context: Context) -> bool:
        """Return whether a student is in memory."""
        project, ref = _reference(name, version)
        return ref in self._library.students_of(project)

    async def listed(self, project: str, context: Context) -> Sequence[Listed]:
        """Return the project's students in memory; which others there are, the gateway knows."""
        refs = self._library.students_of(project)
        return [
            Listed(_short(project, ref.weights_digest), version=ref.card_digest) for ref in refs
        ]

    async def load(self, name: str, context: Context) -> None:
        """Not there: the call that asks for a student names its card as well."""
        raise Unsupported("students are loaded when they are asked for")

    async def unload(self, name: str, context: Context) -> None:
        """Not there, as `load`."""
        raise Unsupported("students leave memory when others are asked for")

    def _check_count(self, call: InferCall, name: str) -> None:
        shape = call.shape(name)
        if not shape or not 1 <= shape[0] <= self._max_items:
            raise InvalidInput(
                f"{name}: shape {shape}; 1 to {self._max_items} items fit", field=name
            )

    async def _in(self, work: Callable[[], R]) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)


def _stored(name: str) -> tuple[str, str]:
    """Project and digest of the weights."""
    project, _, weights = name.rpartition("/")
    project = check_id(project or DEFAULT_PROJECT, field="model_name")
    return project, check_digest(weights, field="model_name")


def _reference(name: str, version: str) -> tuple[str, student_pb2.StudentRef]:
    project, weights = _stored(name)
    if not version:
        said = "model_version: the digest of the student's card is required here"
        raise InvalidInput(f"{said}; the gateway serves students by name", field="model_version")
    card = check_digest(version, field="model_version")
    return project, student_pb2.StudentRef(weights_digest=weights, card_digest=card)


def _short(project: str, weights: str) -> str:
    return weights if project == DEFAULT_PROJECT else f"{project}/{weights}"


def _from_embeddings(student: Student, call: InferCall) -> list[Output]:
    """Through Predict and Explain, so that answers are those of any other caller."""
    rows = call.array(EMBEDDINGS)
    if rows.ndim == 2:
        rows = rows[:, None, :]
    expect(rows, shape=(None, None, None), field=EMBEDDINGS)
    items = [student_pb2.RegionInput(embeddings=to_message(row)) for row in rows]
    outputs = prediction_outputs(predictions_of(explain.predict(student, items), _failed))
    if asks_contributions(call):
        top = top_of(call)
        results = explain.explain(student, items, call.text(LABEL), top)
        outputs += contribution_outputs(explanations_of(results, _failed), top)
    return outputs


def _from_presence(student: Student, call: InferCall) -> list[Output]:
    values = call.array(PRESENCE)
    if values.dtype != np.float32:
        raise InvalidInput(f"{PRESENCE}: {call.datatype(PRESENCE)}; {_HOW}", field=PRESENCE)
    expect(values, shape=(None, len(student.concepts)), field=PRESENCE)
    if not ((values >= 0) & (values <= 1)).all():
        raise InvalidInput(f"{PRESENCE}: lies between 0 and 1", field=PRESENCE)
    outputs = prediction_outputs([explain.prediction(student, row) for row in values])
    if asks_contributions(call):
        top, label = top_of(call), call.text(LABEL)
        chosen = student.class_index(label) if label else None
        found = [explain.explanation(student, _placeless(row), chosen, top) for row in values]
        outputs += contribution_outputs(found, top)
    return outputs


def _placeless(values: Array) -> Presence:
    """Presence that came from no region."""
    return Presence(values[None], np.zeros((1, len(values)), np.int32))


def _failed(index: int, error: StillhouseError) -> StillhouseError:
    status = error.to_status()
    status.message = f"{EMBEDDINGS}[{index}]: {error.message}"
    return from_status(status)
