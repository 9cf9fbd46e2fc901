"""What a language recipe asks to be measured, read from the blob store and checked."""

from __future__ import annotations

from stillhouse.student.v1 import student_pb2

from services.common.errors import InvalidInput, Precondition
from services.common.texts import TextRecord
from services.student.language.data import read_records, read_targets
from services.student.language.evaluation import Exam, verifier_of
from services.student.language.generation import read_sampling
from services.student.language.scoring import Named, name_texts
from services.student.language.students import LanguageStudent
from services.student.recipes import Training

__all__ = ["Exam", "read_exam"]


def read_exam(
    training: Training,
    recipe: student_pb2.LanguageRecipe,
    student: LanguageStudent,
    sequence_length: int,
) -> Exam:
    """The exam of a recipe. Raises NotFound, InvalidInput, Precondition."""
    asked = recipe.evaluation
    encoder, longest = student.loaded.encoder, min(sequence_length, student.context_length)
    texts, skipped = name_texts(_read(training, asked, "text_shards"), encoder, longest)
    bank = read_targets(
        training.blobs, training.project, asked.target_shards, field="evaluation.target_shards"
    )
    targets: list[Named] = []
    if bank is not None:
        if bank.kind != "top_k":
            raise Precondition("evaluation.target_shards: needs top-k targets, not sampled ones")
        targets = [
            Named(f"sequence {at}", f"sequence {at}", one)
            for at, one in enumerate(bank.sequences(student.vocab_size))
        ]
    tasks = _read(training, asked, "task_shards")
    return Exam(
        texts=texts,
        targets=targets,
        bank=bank,
        choices=_with_choices(_read(training, asked, "choice_shards")),
        tasks=_with_prompts(tasks),
        verify=(
            verifier_of(asked.verifier, python_tests=training.surroundings.python_tests)
            if tasks
            else None
        ),
        sampling=read_sampling(asked.sampling, temperature=0.0, field="evaluation.sampling"),
        skipped=skipped,
    )


def _read(training: Training, asked: student_pb2.LanguageEvaluation, name: str) -> list[TextRecord]:
    refs = getattr(asked, name)
    return read_records(training.blobs, training.project, refs, field=f"evaluation.{name}")


def _with_choices(records: list[TextRecord]) -> list[TextRecord]:
    for record in records:
        if not record.prompt or len(record.choices) < 2:
            raise InvalidInput(
                f"record {record.record_id[:100]!r}: needs a prompt and at least two choices",
                field="evaluation.choice_shards",
            )
    return records


def _with_prompts(records: list[TextRecord]) -> list[TextRecord]:
    for record in records:
        if not record.prompt:
            raise InvalidInput(
                f"record {record.record_id[:100]!r}: a task needs a prompt",
                field="evaluation.task_shards",
            )
    return records
