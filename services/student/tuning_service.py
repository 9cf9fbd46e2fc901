"""Refit and Evaluate: a student, its data and its folds brought together. Blocking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from stillhouse.student.v1 import student_pb2

from services.common.blobs import BlobStore
from services.common.errors import InvalidInput, Precondition
from services.common.manifest import SPLITS
from services.student import effects
from services.student.artefacts import Student, write_student
from services.student.data import Doubles
from services.student.edits import Boxes, Trial, boxes_of, check_edits, edit_student, try_edits
from services.student.evaluation import Truth, decisions, detail, score
from services.student.library import Library, Table
from services.student.metrics import bootstrap_counts, mean_estimate
from services.student.tuning import Edit

DEFAULT_RANDOM_EDITS = 10
MAX_RANDOM_EDITS = 100


@dataclass(frozen=True)
class TuningService:
    """Changes and measures stored students."""

    blobs: BlobStore
    library: Library
    max_edits: int

    def refit(self, request: student_pb2.RefitRequest) -> student_pb2.RefitResponse:
        """Apply edits and store the new student. Raises NotFound, InvalidInput, Precondition."""
        project = request.project
        student = self.library.student(project, request.student)
        edits = check_edits(student, request.edits, self.max_edits)
        draws = _draws(request.random_edits)
        table = self.library.table(project, student)
        folds = self.library.folds(project, student, table)
        designs = self.library.designs(table, folds)
        boxes = boxes_of(student.weight.astype(np.float64), edits)
        edited = edit_student(student, table, designs.whole, boxes)
        seed = _seed(student)
        trial = try_edits(table, folds, designs, student.loss, edits, draws, seed)
        found = _measure(student, table, trial, seed)
        made = _edit_effects(request.edits, edits, student, edited, boxes)
        return student_pb2.RefitResponse(
            student=self._store(request, student, edited, trial, made),
            effects=made,
            changes=found.changes,
            flipped_items=found.flipped,
            warnings=found.warnings,
        )

    def evaluate(self, request: student_pb2.EvaluateRequest) -> student_pb2.EvaluateResponse:
        """Metrics on a split, or on train and val; on both out of fold. NotFound, InvalidInput."""
        split = request.split
        if split and split not in SPLITS:
            raise InvalidInput(f"split: {split[:20]!r} is none of {SPLITS}", field="split")
        student = self.library.student(request.project, request.student)
        table = self.library.table(request.project, student)
        rows = table.labels.rows(split) if split else table.known
        response = student_pb2.EvaluateResponse(item_count=len(rows), nec=student.nec)
        if not len(rows):
            response.undefined["fidelity"] = f"{split or 'train and val'}: no usable items"
            return response
        logits = self._logits(request.project, student, table)[rows]
        _fill(response, table, rows, logits, student)
        return response

    def _logits(self, project: str, student: Student, table: Table) -> Doubles:
        """Logits [n, K] of all items: those that the student was fitted to out of fold."""
        weight = student.weight.astype(np.float64)
        logits = table.columns @ weight.T + student.bias.astype(np.float64)
        folds = self.library.folds(project, student, table)
        logits[table.known] = folds.logits(table.columns[table.known])
        return np.asarray(logits, np.float64)

    def _store(
        self,
        request: student_pb2.RefitRequest,
        student: Student,
        edited: Student,
        trial: Trial,
        made: Sequence[student_pb2.EditEffect],
    ) -> student_pb2.StudentRef:
        card = {
            **student.card,
            "parent": request.student.weights_digest,
            "parent_card": request.student.card_digest,
            "edits": [_as_json(one) for one in made],
            "nec": edited.nec,
            "fold_fits": self.blobs.put(request.project, trial.folds.to_bytes()),
        }
        return write_student(self.blobs, request.project, replace(edited, card=card))


def _draws(asked: int) -> int:
    if asked > MAX_RANDOM_EDITS:
        raise InvalidInput(f"random_edits: at most {MAX_RANDOM_EDITS}", field="random_edits")
    return 0 if asked < 0 else asked or DEFAULT_RANDOM_EDITS


def _seed(student: Student) -> int:
    seed = student.card.get("seed", 0)
    if not isinstance(seed, int):
        raise Precondition("card: `seed` is not a number")
    return seed & 0xFFFF_FFFF


def _measure(student: Student, table: Table, trial: Trial, seed: int) -> effects.Effects:
    teacher = decisions(_responses(table, student)[table.known], student.loss)
    labels = table.labels.hot[table.known]
    return effects.measure(trial, teacher, labels, student.classes, student.loss, seed)


def _responses(table: Table, student: Student) -> Doubles:
    """The teacher's responses so that `decisions` reads them like logits."""
    return table.targets - 0.5 if student.loss == "bce" else table.targets


def _edit_effects(
    asked: Sequence[student_pb2.ConceptEdit],
    edits: Sequence[Edit],
    before: Student,
    after: Student,
    boxes: Boxes,
) -> list[student_pb2.EditEffect]:
    return [
        student_pb2.EditEffect(
            edit=message,
            weight_before=float(before.weight[edit.row, edit.column]),
            weight_after=float(after.weight[edit.row, edit.column]),
            box_low=boxes[edit.row][edit.column].low,
            box_high=boxes[edit.row][edit.column].high,
        )
        for message, edit in zip(asked, edits, strict=True)
    ]


def _as_json(effect: student_pb2.EditEffect) -> dict[str, Any]:
    up = effect.edit.direction == student_pb2.DIRECTION_UP
    return {
        "label": effect.edit.label,
        "concept": effect.edit.concept,
        "direction": "up" if up else "down",
        "factor": effect.edit.factor,
        "weight_before": effect.weight_before,
        "weight_after": effect.weight_after,
        "box": [effect.box_low, effect.box_high],
    }


def _fill(
    response: student_pb2.EvaluateResponse,
    table: Table,
    rows: np.typing.NDArray[np.int64],
    logits: Doubles,
    student: Student,
) -> None:
    truth = Truth(table.targets[rows], table.targets[rows], table.labels.hot[rows], student.loss)
    counts = bootstrap_counts(len(rows), seed=_seed(student))
    scored = score(truth, logits, student.nec)
    found: dict[str, dict[str, Any]] = {
        "fidelity": mean_estimate(scored.fidelity, counts).as_dict()
    }
    if scored.accuracy is not None:
        found["accuracy"] = mean_estimate(scored.accuracy, counts).as_dict()
    per_class = detail(truth, logits, counts)["per_class"]
    for name, row in zip(student.classes, per_class, strict=True):
        for key, entry in row.items():
            found[f"{'average_precision' if key == 'ap' else key}/{name}"] = entry
    found |= _mean_average_precision(found)
    for metric, entry in found.items():
        if entry["value"] is None:
            response.undefined[metric] = str(entry["reason"])
        else:
            response.metrics[metric].CopyFrom(student_pb2.Estimate(**entry))


def _mean_average_precision(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Mean over the classes that have one; the interval is the mean of theirs."""
    entries = [e for name, e in found.items() if name.startswith("average_precision/")]
    known = [entry for entry in entries if entry["value"] is not None]
    if not known:
        reason = {"value": None, "reason": "no class has items here"}
        return {"mean_average_precision": reason} if entries else {}
    mean = {key: float(np.mean([one[key] for one in known])) for key in ("value", "low", "high")}
    return {"mean_average_precision": mean}
