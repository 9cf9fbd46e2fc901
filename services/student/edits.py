"""Concept edits: checked, applied together to a student and to its folds. No I/O."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from stillhouse.student.v1 import student_pb2
from torch import Tensor

from services.common.errors import InvalidInput
from services.student.artefacts import Student
from services.student.data import Doubles
from services.student.design import Design
from services.student.folds import FoldFits
from services.student.library import Designs, Table
from services.student.objective import Loss
from services.student.path import SparseFit
from services.student.tuning import Box, Edit, class_offset, edit_box, random_boxes, refit_class

MAX_FACTOR = 100.0
Boxes = dict[int, dict[int, Box]]
"""By class: by concept the box that its weight must meet."""


@dataclass(frozen=True)
class Trial:
    """Out-of-fold logits [n, K] before and after the edits and after each draw of random edits;
    the edited folds."""

    before: Doubles
    after: Doubles
    random: tuple[Doubles, ...]
    folds: FoldFits


def check_edits(
    student: Student, edits: Sequence[student_pb2.ConceptEdit], limit: int
) -> list[Edit]:
    """Edits as rows and columns. Raises InvalidInput for an unknown name, a bad direction or
    factor, or two edits of one weight, naming the field."""
    if not 1 <= len(edits) <= limit:
        raise InvalidInput(f"edits: needs 1 to {limit}, got {len(edits)}", field="edits")
    checked: list[Edit] = []
    for index, edit in enumerate(edits):
        found = _check(student, edit, f"edits[{index}]")
        if any((one.row, one.column) == (found.row, found.column) for one in checked):
            raise InvalidInput(
                f"edits[{index}]: {edit.concept!r} of {edit.label!r} is edited twice in one call",
                field=f"edits[{index}].concept",
            )
        checked.append(found)
    return checked


def _check(student: Student, edit: student_pb2.ConceptEdit, where: str) -> Edit:
    row = student.class_index(edit.label, field=f"{where}.label")
    column = student.concept_index(edit.concept, field=f"{where}.concept")
    if edit.direction not in (student_pb2.DIRECTION_UP, student_pb2.DIRECTION_DOWN):
        raise InvalidInput(f"{where}.direction: up or down is required", field=f"{where}.direction")
    if not (math.isfinite(edit.factor) and 1 < edit.factor <= MAX_FACTOR):
        raise InvalidInput(
            f"{where}.factor: {edit.factor} is not more than 1 and at most {MAX_FACTOR:.0f}",
            field=f"{where}.factor",
        )
    if not student.weight[row].any():
        raise InvalidInput(
            f"{where}.label: {edit.label!r} uses no concept, so an edit has no size",
            field=f"{where}.label",
        )
    up = edit.direction == student_pb2.DIRECTION_UP
    return Edit(row, column, "up" if up else "down", edit.factor)


def boxes_of(weights: Doubles, edits: Sequence[Edit]) -> Boxes:
    """Boxes of the edits on weights [K, M]. A class without weights (of a fold) has none."""
    boxes: Boxes = {}
    for edit in edits:
        if weights[edit.row].any():
            boxes.setdefault(edit.row, {})[edit.column] = edit_box(weights, edit)
    return boxes


def edit_student(student: Student, table: Table, design: Design, boxes: Boxes) -> Student:
    """The student with all boxes met and the edited classes refitted around them."""
    weight, bias = student.weight.copy(), student.bias.copy()
    targets = table.targets[table.known]
    for row, inside in boxes.items():
        weight[row], bias[row] = refit_class(
            design, targets, student.loss, weight, bias, row, inside
        )
    return replace(student, weight=weight, bias=bias)


def try_edits(
    table: Table,
    folds: FoldFits,
    designs: Designs,
    loss: Loss,
    edits: Sequence[Edit],
    draws: int,
    seed: int,
) -> Trial:
    """Apply the edits, and `draws` times random ones of equal size, to every fold."""
    columns, targets = table.columns[table.known], table.targets[table.known]
    before = folds.logits(columns)
    after, random = before.copy(), [before.copy() for _ in range(draws)]
    fits = []
    for fold, fit in enumerate(folds.fits):
        inside = folds.fold_of == fold
        held = columns[inside]
        part = _Fold(designs.without[fold], targets[~inside], loss, fit)
        edited = part.edit(boxes_of(fit.weights, edits))
        fits.append(edited)
        after[inside] = _logits(before[inside], held, fit, edited)
        for draw, boxes in enumerate(_random(fit.weights, edits, draws, seed)):
            random[draw][inside] = _logits(before[inside], held, fit, part.edit(boxes))
    return Trial(before, after, tuple(random), FoldFits(folds.fold_of, tuple(fits)))


@dataclass(frozen=True)
class _Fold:
    """One fold's fit with what it was fitted to; the same edit base serves all draws."""

    design: Design
    targets: Doubles
    loss: Loss
    fit: SparseFit
    offsets: dict[int, Tensor] = field(default_factory=dict)

    def edit(self, boxes: Boxes) -> SparseFit:
        """The fit with all boxes met, its classes refitted one after the other."""
        weights, intercepts = self.fit.weights.copy(), self.fit.intercepts.copy()
        for turn, (row, inside) in enumerate(boxes.items()):
            offset = None if turn else self._first_offset(row)
            weights[row], intercepts[row] = refit_class(
                *(self.design, self.targets, self.loss, weights, intercepts, row, inside),
                offset=offset,
            )
        return SparseFit(weights, intercepts, self.fit.lam)

    def _first_offset(self, row: int) -> Tensor:
        if row not in self.offsets:
            self.offsets[row] = class_offset(
                self.design, self.fit.weights, self.fit.intercepts, row, self.loss
            )
        return self.offsets[row]


def _logits(before: Doubles, held: Doubles, fit: SparseFit, edited: SparseFit) -> Doubles:
    """Logits [n, K] of an edited fit; only the classes that moved are computed."""
    found = before.copy()
    moved = (fit.weights != edited.weights).any(axis=1) | (fit.intercepts != edited.intercepts)
    found[:, moved] = held @ edited.weights[moved].T + edited.intercepts[moved]
    return found


def _random(weights: Doubles, edits: Sequence[Edit], draws: int, seed: int) -> list[Boxes]:
    """Per draw, for every edit a random other concept of its class, moved by as much."""
    found: list[Boxes] = [{} for _ in range(draws)]
    if draws == 0 or weights.shape[1] < 2:
        return found
    for number, edit in enumerate(edits):
        if weights[edit.row].any():
            mixed = int(np.random.SeedSequence([seed & 0xFFFF_FFFF, number]).generate_state(1)[0])
            for draw, (column, box) in enumerate(random_boxes(weights, edit, draws, mixed)):
                found[draw].setdefault(edit.row, {})[column] = box
    return found
