"""Measures of a language model on held-out data, record by record.

- `cross_entropy`: nats per target token of texts and answers;
- `kl_to_teacher`: KL(p || q) over the teacher's k most probable ids and one tail, a lower bound of
  the whole divergence; `top1_agreement`: how often the first choices are the same;
- `choice_accuracy`: the right choice has the highest mean log-probability per token after the
  prompt; `choice_accuracy_sum`: the highest sum;
- `task_accuracy`: greedy answers that the verifier accepts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from stillhouse.common.v1 import language_pb2

from services.common.errors import InvalidInput, Precondition
from services.common.sandbox import open_sandbox
from services.common.texts import TextRecord
from services.common.verifiers import check_verifier, verify
from services.student.language.data import TargetBank
from services.student.language.generation import SamplingOptions, generate, text_of
from services.student.language.measures import Item
from services.student.language.scoring import Examinee, Named, agreements, cross_entropies
from services.torch_common.language.packing import PackedSequence, answered, prompt_ids

Verify = Callable[[str, TextRecord], bool]


@dataclass(frozen=True)
class Exam:
    """Everything that a model is measured on; the same before and after training."""

    texts: Sequence[Named] = ()
    targets: Sequence[Named] = ()
    bank: TargetBank | None = None
    choices: Sequence[TextRecord] = ()
    tasks: Sequence[TextRecord] = ()
    verify: Verify | None = None
    sampling: SamplingOptions | None = None
    skipped: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.texts or self.targets or self.choices or self.tasks)


def take(exam: Exam, who: Examinee, *, told: Callable[[str], None]) -> dict[str, list[Item]]:
    """Every measure that the exam has data for, as items by metric."""
    found: dict[str, list[Item]] = {}
    if exam.texts:
        told("cross-entropy")
        found["cross_entropy"] = cross_entropies(who, exam.texts)
    if exam.targets and exam.bank is not None:
        told("agreement with the teacher")
        found |= agreements(who, exam.targets, exam.bank)
    if exam.choices:
        told("choices")
        found |= choices(who, exam.choices)
    if exam.tasks and exam.verify is not None and exam.sampling is not None:
        told("tasks")
        found["task_accuracy"] = tasks(who, exam.tasks, exam.verify, exam.sampling)
    return found


def choices(who: Examinee, records: Sequence[TextRecord]) -> dict[str, list[Item]]:
    """1 for each record whose right choice is the most likely, by mean and by sum."""
    by_mean: list[Item] = []
    by_sum: list[Item] = []
    sequences = [_choice_sequences(who, record) for record in records]
    named = [Named("", "", one) for some in sequences for one in some]
    scores = iter(cross_entropies(who, named))
    for record, some in zip(records, sequences, strict=True):
        found = [next(scores) for _ in some]
        sums = np.array([one.value for one in found])
        means = sums / np.array([one.count for one in found])
        group = record.group or record.record_id
        for items, values in ((by_mean, means), (by_sum, sums)):
            right = float(int(values.argmin()) == record.choice_index)
            items.append(Item(record.record_id, group, right, 1))
    return {"choice_accuracy": by_mean, "choice_accuracy_sum": by_sum}


def _choice_sequences(who: Examinee, record: TextRecord) -> list[PackedSequence]:
    """Prompt and choice, once per choice, without an end-of-text token."""
    prompt = prompt_ids(who.encoder, record)
    found = [answered(prompt, who.encoder.ids(choice)) for choice in record.choices]
    for one in found:
        if not one.target_count:
            raise InvalidInput(
                f"record {record.record_id[:100]!r}: a choice without tokens, or no prompt",
                field="choice_shards",
            )
        if len(one.tokens) > who.context_length:
            raise InvalidInput(
                f"record {record.record_id[:100]!r}: {len(one.tokens):,} tokens, the context has "
                f"{who.context_length:,}",
                field="choice_shards",
            )
    return found


def tasks(
    who: Examinee, records: Sequence[TextRecord], verify: Verify, sampling: SamplingOptions
) -> list[Item]:
    """1 for each record whose answer the verifier accepts."""
    prompts = [prompt_ids(who.encoder, record) for record in records]
    answers = generate(who.model, who.encoder, prompts, sampling, dtype=who.dtype)
    found = []
    for record, answer in zip(records, answers, strict=True):
        right = verify(text_of(who.encoder, answer, sampling.stop), record)
        found.append(Item(record.record_id, record.group or record.record_id, float(right), 1))
    return found


def verifier_of(message: language_pb2.Verifier, *, python_tests: bool) -> Verify:
    """What says whether an answer is right. Raises InvalidInput, and Precondition where Python
    tests are not allowed or cannot be locked in.
    """
    sandbox = None
    if message.WhichOneof("verifier") == "python_tests":
        if not python_tests:
            raise Precondition(
                "verifier: Python tests run answers as programs; set STUDENT_RUN_PYTHON_TESTS=true"
            )
        sandbox = open_sandbox()
    check_verifier(message, sandbox=sandbox)
    return lambda answer, record: verify(message, answer, record, sandbox=sandbox).accepted
