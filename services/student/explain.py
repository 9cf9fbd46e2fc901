"""Predictions of a student and their reasons, on region embeddings. Pure numpy and messages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from google.rpc import status_pb2
from stillhouse.student.v1 import student_pb2

from services.common.errors import InvalidInput, StillhouseError
from services.common.presence import Presence
from services.common.tensors import Array, from_message, to_message
from services.student.artefacts import Student, probabilities
from services.student.data import Doubles, presence_of

MAX_REGIONS = 4096
MAX_ITEM_ID = 256
DEFAULT_TOP = 10


def predict(
    student: Student, items: Sequence[student_pb2.RegionInput]
) -> list[student_pb2.PredictResult]:
    """One prediction or status per item."""
    return [_predict(student, item) for item in items]


def explain(
    student: Student, items: Sequence[student_pb2.RegionInput], label: str, top: int
) -> list[student_pb2.ExplainResult]:
    """One explanation or status per item, of class `label` or of each item's predicted class.

    Raises InvalidInput for an unknown class or a negative `top`.
    """
    if top < 0:
        raise InvalidInput("top: must not be negative", field="top")
    chosen = student.class_index(label) if label else None
    return [_explain(student, item, chosen, top or DEFAULT_TOP) for item in items]


def prediction(student: Student, values: Array) -> student_pb2.Prediction:
    """The prediction of one item's presence [M] float32."""
    logits = student.logits(values[None])
    return student_pb2.Prediction(
        label=student.classes[int(logits[0].argmax())],
        logits=to_message(logits[0].astype(np.float32)),
        probabilities=to_message(probabilities(logits, student.loss)[0].astype(np.float32)),
    )


def explanation(
    student: Student, found: Presence, chosen: int | None, top: int
) -> student_pb2.Explanation:
    """Why class `chosen`, or the predicted one, has its logit for one item's presence."""
    row = int(student.logits(found.values)[0].argmax()) if chosen is None else chosen
    parts = student.weight[row].astype(np.float64) * student.standardise(found.values)[0]
    return _explanation(student, row, parts, found, top)


def _predict(student: Student, item: student_pb2.RegionInput) -> student_pb2.PredictResult:
    try:
        found = prediction(student, _presence(student, item).values[0])
    except StillhouseError as error:
        return student_pb2.PredictResult(item_id=_item_id(item), error=error.to_status())
    return student_pb2.PredictResult(item_id=item.item_id, prediction=found)


def _explain(
    student: Student, item: student_pb2.RegionInput, chosen: int | None, top: int
) -> student_pb2.ExplainResult:
    try:
        found = _presence(student, item)
    except StillhouseError as error:
        status: status_pb2.Status = error.to_status()
        return student_pb2.ExplainResult(item_id=_item_id(item), error=status)
    made = explanation(student, found, chosen, top)
    return student_pb2.ExplainResult(item_id=item.item_id, explanation=made)


def _explanation(
    student: Student, row: int, parts: Doubles, found: Presence, top: int
) -> student_pb2.Explanation:
    used = np.flatnonzero(student.weight[row])
    order = used[np.argsort(-np.abs(parts[used]), kind="stable")]
    concepts = student.concepts
    listed = [
        student_pb2.Contribution(
            concept=concepts[index],
            contribution=float(parts[index]),
            weight=float(student.weight[row, index]),
            presence=float(found.values[0, index]),
            region=int(found.region[0, index]),
        )
        for index in order[:top]
    ]
    rest = float(parts[order[top:]].sum())
    intercept = float(student.bias[row])
    total = intercept + sum(one.contribution for one in listed) + rest
    return student_pb2.Explanation(
        label=student.classes[row],
        logit=total,
        intercept=intercept,
        contributions=listed,
        rest=rest,
    )


def _presence(student: Student, item: student_pb2.RegionInput) -> Presence:
    regions = _regions(student, item)
    if student.card.get("whole_image_only"):
        regions = regions[:1]
    return presence_of(regions, np.array([0, len(regions)]), student.bank)


def _regions(student: Student, item: student_pb2.RegionInput) -> Array:
    if len(item.item_id) > MAX_ITEM_ID:
        raise InvalidInput(f"item_id: longer than {MAX_ITEM_ID} characters", field="item_id")
    regions = from_message(item.embeddings, field="embeddings")
    dim = student.bank.text.shape[1]
    if regions.dtype != np.float16:
        raise InvalidInput(f"embeddings: {regions.dtype}, expected float16", field="embeddings")
    if regions.ndim != 2 or regions.shape[1] != dim or not 1 <= len(regions) <= MAX_REGIONS:
        raise InvalidInput(
            f"embeddings: shape {regions.shape}, expected [1 to {MAX_REGIONS}, {dim}]",
            field="embeddings",
        )
    return regions


def _item_id(item: student_pb2.RegionInput) -> str:
    return item.item_id[:MAX_ITEM_ID]
