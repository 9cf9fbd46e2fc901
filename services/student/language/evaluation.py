"""Measures of a language model on held-out data, record by record.

- `cross_entropy`: nats per target token of texts and answers;
- `kl_to_teacher`: KL(p || q) over the teacher's k most probable ids and one tail, a lower bound of
  the whole divergence; `top1_agreement`: how often the first choices are the same;
- `choice_accuracy`: the right choice has the highest mean log-probability per token after the
  prompt; `choice_accuracy_sum`: the highest sum;
- `task_accuracy`: greedy answers that the verifier accepts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from stillhouse.common.v1 import language_pb2
from torch import Tensor

from services.common.errors import InvalidInput, Precondition
from services.common.texts import TextRecord
from services.common.verifiers import check_verifier, verify
from services.student.language.data import Batch, TargetBank, collate
from services.student.language.generation import SamplingOptions, generate, text_of
from services.student.language.losses import pointwise
from services.student.language.measures import Item
from services.student.language.objective import target_logits
from services.student.language.sparse_losses import bucket_log_probabilities
from services.torch_common.language.packing import (
    Encoder,
    PackedSequence,
    answered,
    pack,
    prompt_ids,
)

BATCH_TOKENS = 2048
"""Padded tokens of a forward pass; a longer sequence runs by itself."""

Verify = Callable[[str, TextRecord], bool]


@dataclass(frozen=True)
class Named:
    """A sequence, the record it is of, and the group its interval is drawn over."""

    id: str
    group: str
    sequence: PackedSequence


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


@dataclass(frozen=True)
class Examinee:
    """A model, what turns text into its tokens, and the type that it computes in."""

    model: Any
    encoder: Encoder
    dtype: torch.dtype = torch.float32

    @property
    def context_length(self) -> int:
        """Longest sequence, in tokens."""
        return int(self.model.config.max_position_embeddings)


def name_texts(
    records: Sequence[TextRecord], encoder: Encoder, sequence_length: int
) -> tuple[list[Named], list[str]]:
    """Sequences of records to measure, and why others became none. Answers keep their record's name
    and group; joined texts are sequences of their own.
    """
    found, skipped = [], []
    for record in records:
        if record.prompt:
            packed = pack([record], encoder, sequence_length)
            skipped += [f"{record.record_id}: {why}" for why in packed.skipped]
            group = record.group or record.record_id
            found += [Named(record.record_id, group, one) for one in packed.sequences]
    joined = pack([one for one in records if one.text], encoder, sequence_length)
    names = [f"sequence {at}" for at in range(len(joined.sequences))]
    found += [Named(name, name, one) for name, one in zip(names, joined.sequences, strict=True)]
    return found, skipped + joined.skipped


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


@torch.no_grad()
def cross_entropies(who: Examinee, named: Sequence[Named]) -> list[Item]:
    """Sum of -log q over each sequence's targets, in nats."""
    found: dict[int, Item] = {}
    for places, batch in _batches(who, [one.sequence for one in named]):
        logits = target_logits(who.model, batch, dtype=who.dtype)
        sums = _per_sequence(batch, -_log_probabilities(logits, batch.labels))
        for at, total in zip(places, sums, strict=True):
            one = named[at]
            found[at] = Item(one.id, one.group, total, one.sequence.target_count)
    return [found[at] for at in range(len(named))]


@torch.no_grad()
def agreements(who: Examinee, named: Sequence[Named], bank: TargetBank) -> dict[str, list[Item]]:
    """KL to the teacher and agreement of the first choice, from top-k targets."""
    divergences: dict[int, Item] = {}
    same: dict[int, Item] = {}
    for places, batch in _batches(who, [one.sequence for one in named], bank):
        assert batch.targets is not None
        logits = target_logits(who.model, batch, dtype=who.dtype)
        kl, first = _agreement(logits, batch, bank.temperature)
        rows = zip(places, _per_sequence(batch, kl), _per_sequence(batch, first), strict=True)
        for at, total, hits in rows:
            one, count = named[at], named[at].sequence.target_count
            divergences[at] = Item(one.id, one.group, total, count)
            same[at] = Item(one.id, one.group, hits, count)
    order = range(len(named))
    return {
        "kl_to_teacher": [divergences[at] for at in order],
        "top1_agreement": [same[at] for at in order],
    }


def _agreement(logits: Tensor, batch: Batch, temperature: float) -> tuple[Tensor, Tensor]:
    """KL over k + 1 buckets, and 1 where the first choices agree, [N] each."""
    targets = batch.targets
    assert targets is not None
    log_p, log_q = bucket_log_probabilities(logits, targets, temperature=temperature)
    terms = pointwise("forward_kl", log_p, log_q, beta=0.5, skew=0.5)
    entries = len(targets.ids)
    kl = terms[entries:].index_add(0, targets.row, terms[:entries])
    highest = torch.full((len(logits),), -1.0, device=logits.device)
    highest = highest.scatter_reduce(0, targets.row, targets.weight, "amax")
    is_first = targets.weight == highest[targets.row]
    hit = is_first & (targets.ids == logits.argmax(dim=-1)[targets.row])
    first = torch.zeros(len(logits), device=logits.device)
    return kl, first.index_add(0, targets.row, hit.float()).clamp_max(1.0)


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
                "verifier: Python tests run answers as programs; set STUDENT_PYTHON_TESTS=true"
            )
        from services.common.sandbox import open_sandbox

        sandbox = open_sandbox()
    check_verifier(message, sandbox=sandbox)
    return lambda answer, record: verify(message, answer, record, sandbox=sandbox).accepted


def _batches(
    who: Examinee, sequences: Sequence[PackedSequence], bank: TargetBank | None = None
) -> Iterator[tuple[list[int], Batch]]:
    """(places, batch) by rising length, each of a bounded number of padded tokens."""
    device = next(who.model.parameters()).device
    lengths = [len(one.tokens) for one in sequences]
    places: list[int] = []
    for at in sorted(range(len(sequences)), key=lambda i: (lengths[i], i)):
        if places and (len(places) + 1) * lengths[at] > BATCH_TOKENS:
            yield places, collate([sequences[i] for i in places], bank).to(device)
            places = []
        places.append(at)
    if places:
        yield places, collate([sequences[i] for i in places], bank).to(device)


def _log_probabilities(logits: Tensor, labels: Tensor) -> Tensor:
    """log q(label) float32 [N]."""
    logits = logits.float()
    return logits.gather(1, labels[:, None])[:, 0] - logits.logsumexp(dim=-1)


def _per_sequence(batch: Batch, values: Tensor) -> list[float]:
    """Sums [B] of values [N], in float64."""
    rows = batch.predicts.nonzero()[:, 0]
    sums = torch.zeros(len(batch.predicts), dtype=torch.float64, device=values.device)
    return [float(x) for x in sums.index_add(0, rows, values.double())]
