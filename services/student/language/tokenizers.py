"""Targets of a teacher with another tokenizer: whose they are, and which position goes with which.

Teacher and student each tokenize the same record of a prompt and an answer. A sequence finds its
targets by the record's digest, and the n-th token of the student's answer is compared with the n-th
of the teacher's, up to the end of the shorter (ULD, arXiv 2402.12030).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from services.common.errors import Precondition
from services.common.targets import SequenceTargets
from services.common.texts import TextRecord
from services.student.language.data import TargetBank
from services.torch_common.language.packing import PackedSequence


class AlignedBank(TargetBank):
    """Stored targets that are found by the text record of a sequence, whatever its tokens are."""

    def __init__(self, bank: TargetBank) -> None:
        super().__init__(bank.shards)
        self._by_record = {
            record: (shard, at)
            for shard in self.shards
            for at, record in enumerate(shard.records)
            if record
        }

    def has(self, sequence: PackedSequence) -> bool:
        """Whether its record has targets."""
        return sequence.record in self._by_record

    def targets_of(self, sequence: PackedSequence) -> SequenceTargets | None:
        """The targets of its record, laid over its own target tokens; None where there are none.

        Raises InvalidInput where they are damaged.
        """
        place = self._by_record.get(sequence.record)
        return None if place is None else lay(place[0].sequence(place[1]), sequence.target_count)


def lay(stored: SequenceTargets, count: int) -> SequenceTargets:
    """The targets for a sequence of `count` target tokens: those of the first ones as they are; a
    token past the stored ones has no ids, and all of its probability is its tail."""
    kept = stored.row < count
    tail = np.ones(count, np.float32)
    tail[: len(stored.tail)] = stored.tail[:count]
    return replace(
        stored,
        ids=stored.ids[kept],
        row=stored.row[kept],
        weight=stored.weight[kept],
        tail=tail,
    )


def check_answers(records: Sequence[TextRecord]) -> None:
    """Raise Precondition where a record is a plain text, which has no answer to align."""
    plain = sum(bool(record.text) for record in records)
    if plain:
        raise Precondition(
            f"ULD needs prompts with answers: {plain} of {len(records)} records are plain texts, "
            "which two tokenizers cut at different places",
            differences={"records": f"{plain} plain texts"},
        )


def matched(
    sequences: Sequence[PackedSequence], bank: AlignedBank
) -> tuple[list[PackedSequence], list[str]]:
    """The sequences whose records have targets, and what to say of the others: a record may be too
    long in the teacher's tokens alone. Raises Precondition where none has targets."""
    found = [one for one in sequences if bank.has(one)]
    missing = len(sequences) - len(found)
    if missing and not found:
        raise Precondition(
            f"none of {len(sequences)} records has targets; store top-k targets of the same "
            "records of prompts and answers",
            differences={"records": f"{missing} without targets"},
        )
    said = f"{missing} of {len(sequences)} records have no targets and are left out"
    return found, [said] if missing else []
