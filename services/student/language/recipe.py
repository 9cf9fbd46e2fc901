"""The language recipe: read, measure, train, measure again, store.

Everything that can be refused is refused before the first step. A worker that takes over after a
crash reads what was measured before training and goes on from the trainer's last checkpoint, so
that it ends with the same weights.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.json_format import MessageToDict
from stillhouse.common.v1 import items_pb2
from stillhouse.student.v1 import student_pb2

from services.student.artefacts import Card, to_json
from services.student.head_recipe import put
from services.student.language import exams, states, students
from services.student.language.course import Course, Progress
from services.student.language.data import TargetBank
from services.student.language.evaluation import take
from services.student.language.measures import Item, Measured, check_finite
from services.student.language.options import TrainingOptions, read_options
from services.student.language.plan import plan_steps
from services.student.language.reading import TrainingData, read_data
from services.student.language.reports import make_report
from services.student.language.requests import check_language
from services.student.language.scoring import Examinee, cross_entropies
from services.student.language.students import LanguageStudent
from services.student.language.training import fit
from services.student.recipes import Training

HELDOUT_SEQUENCES = 64
"""Held-out sequences measured during training; all of them are measured before and after."""


def train_language(
    training: Training, recipe: student_pb2.LanguageRecipe
) -> student_pb2.LanguageModelResult:
    """Train, measure, store. Raises NotFound, InvalidInput, Precondition for what cannot be."""
    check_language(recipe)
    training.progress("loading the student", 0, 0)
    options = read_options(recipe.training, teacher=_has_teacher(recipe))
    lora = None if recipe.evaluate_only else options.lora
    student = students.load_student(training, recipe, lora, options.precision)
    with student.loaded.activated():
        return _train(training, recipe, options, student)


def _train(
    training: Training,
    recipe: student_pb2.LanguageRecipe,
    options: TrainingOptions,
    student: LanguageStudent,
) -> student_pb2.LanguageModelResult:
    training.progress("reading the data", 0, 0)
    exam = exams.read_exam(training, recipe, student, options.sequence_length)
    data = None if recipe.evaluate_only else read_data(training, recipe, options, student)

    def measure(who: Examinee, when: str) -> dict[str, list[Item]]:
        told = take(exam, who, told=lambda what: training.progress(f"{when}: {what}", 0, 0))
        check_finite(told, when)
        return told

    before: Measured = {}
    skipped = recipe.evaluation.skip_before and not recipe.evaluate_only
    if training.ranks.first and not skipped:
        before = _kept(training, "before", lambda: measure(student.examinee, "before training"))
    if data is None:
        report = make_report(before, None, None, _notes(recipe, student, exam.skipped, None))
        return student_pb2.LanguageModelResult(report=_put(training, report))
    students.make_trainable(student, options.seed)
    guide = states.attach(student, options.intermediate_states)
    progress = _fit(training, recipe, options, student, data, exam, guide)
    training.ranks.leave()
    states.detach(student)
    training.progress("finishing the weights", 0, 0)
    students.finish(student)
    after = measure(student.examinee, "after training")
    notes = _notes(recipe, student, data.skipped + exam.skipped, data.bank)
    report = make_report(before, after, progress, notes)
    return _store(training, recipe, student, progress, report)


def _fit(
    training: Training,
    recipe: student_pb2.LanguageRecipe,
    options: TrainingOptions,
    student: LanguageStudent,
    data: TrainingData,
    exam: exams.Exam,
    guide: states.StateGuide | None,
) -> Progress:
    lengths, again = (
        np.array([len(one.tokens) for one in some], np.int64)
        for some in (data.sequences, data.replay)
    )
    steps = plan_steps(
        lengths,
        again,
        steps=options.steps(len(data.sequences), replay=bool(data.replay)),
        batch=options.batch_sequences,
        replay_share=options.replay_share,
        seed=options.seed,
    )
    some = exam.texts[:HELDOUT_SEQUENCES]

    def heldout(model: Any) -> float:
        items = cross_entropies(Examinee(model, student.loaded.encoder, student.dtype), some)
        check_finite({"cross_entropy": items}, "during training")
        return sum(one.value for one in items) / sum(one.count for one in items)

    course = Course(
        sequences=data.sequences + data.replay,
        bank=data.bank,
        steps=steps,
        heldout=heldout if some else None,
        teach=data.teach,
        kind=data.bank.kind if data.bank else "top_k",
        guide=guide,
    )
    training.progress("training", 0, len(steps))
    student.model, progress = fit(student.model, course, options, training, dtype=student.dtype)
    return progress


def _store(
    training: Training,
    recipe: student_pb2.LanguageRecipe,
    student: LanguageStudent,
    progress: Progress,
    report: Card,
) -> student_pb2.LanguageModelResult:
    training.progress("storing the student", 0, 0)
    with tempfile.TemporaryDirectory(dir=training.writer.run.path) as scratch:
        folder = Path(scratch)
        digest = students.save(student, folder)
        result = student_pb2.LanguageModelResult(
            report=_put(training, report), weights_digest=digest
        )
        if not recipe.discard_model:
            card = _card(recipe, student, progress)
            blobs, project = training.blobs, training.project
            record = students.store(student, folder, digest, blobs, project, card)
            result.model.CopyFrom(items_pb2.BlobRef(digest=record))
    return result


def _card(recipe: student_pb2.LanguageRecipe, student: LanguageStudent, progress: Progress) -> Card:
    """Where the student came from."""
    card: Card = {"cut": student.pruned} if student.pruned else {}
    return card | {
        "student": recipe.student,
        "student_digest": student.loaded.digest,
        "keep_layers": list(recipe.keep_layers),
        "training": MessageToDict(recipe.training, preserving_proto_field_name=True),
        "precision": str(student.dtype).removeprefix("torch."),
        "steps": progress.step,
        "trained_tokens": progress.tokens,
        "provenance": dict(recipe.provenance),
        "data": {
            name: [ref.digest for ref in getattr(recipe, name)]
            for name in ("text_shards", "target_shards", "replay_shards")
        },
    }


def _notes(
    recipe: student_pb2.LanguageRecipe,
    student: LanguageStudent,
    skipped: list[str],
    bank: TargetBank | None,
) -> Card:
    """What a report says beside its figures."""
    notes: Card = {
        "settings": {
            "student": recipe.student,
            "keep_layers": list(recipe.keep_layers),
            "training": MessageToDict(recipe.training, preserving_proto_field_name=True),
            "precision": str(student.dtype).removeprefix("torch."),
            "parameters": sum(weight.numel() for weight in student.model.parameters()),
        },
        "provenance": dict(recipe.provenance),
    }
    if student.pruned:
        notes["settings"]["cut"] = student.pruned
    if skipped:
        notes["skipped"] = skipped
    if bank is not None:
        notes["targets"] = {"tokens": bank.token_count, "bytes_per_token": bank.bytes_per_token}
    return notes


def _kept(training: Training, phase: str, measure: Callable[[], dict[str, list[Item]]]) -> Measured:
    """What was measured; a worker that takes over reads it."""
    found = training.writer.newest_folder(phase)
    if found is not None:
        raw = json.loads((found / "items.json").read_text())
        return {name: [Item(**item) for item in items] for name, items in raw.items()}
    measured = measure()
    text = json.dumps({name: [asdict(item) for item in items] for name, items in measured.items()})
    training.writer.save_folder(phase, 0, lambda folder: (folder / "items.json").write_text(text))
    return measured


def _put(training: Training, report: Card) -> items_pb2.BlobRef:
    return put(training.blobs, training.project, to_json(report))


def _has_teacher(recipe: student_pb2.LanguageRecipe) -> bool:
    return bool(recipe.target_shards) or recipe.HasField("on_policy")
