"""What a language model says of given tokens: cross-entropy, and agreement with a teacher."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from services.common.texts import TextRecord
from services.student.language.data import Batch, TargetBank, collate
from services.student.language.losses import pointwise
from services.student.language.measures import Item
from services.student.language.objective import target_logits
from services.student.language.sparse_losses import (
    ROWS,
    SparseTargets,
    bucket_log_probabilities,
    slices,
)
from services.torch_common.language.packing import Encoder, PackedSequence, pack

BATCH_TOKENS = 2048
"""Padded tokens of a forward pass; a longer sequence runs by itself."""


@dataclass(frozen=True)
class Named:
    """A sequence, the record it is of, and the group its interval is drawn over."""

    id: str
    group: str
    sequence: PackedSequence


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
    assert batch.targets is not None
    parts = [_agreement_of(logits[rows], some, temperature) for rows, some in slices(batch.targets)]
    divergences, same = zip(*parts, strict=True)
    return torch.cat(divergences), torch.cat(same)


def _agreement_of(
    logits: Tensor, targets: SparseTargets, temperature: float
) -> tuple[Tensor, Tensor]:
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
    found = []
    for at in range(0, len(logits), ROWS):
        part = logits[at : at + ROWS].float()
        wanted = labels[at : at + ROWS, None]
        found.append(part.gather(1, wanted)[:, 0] - part.logsumexp(dim=-1))
    return torch.cat(found)


def _per_sequence(batch: Batch, values: Tensor) -> list[float]:
    """Sums [B] of values [N], in float64."""
    rows = batch.predicts.nonzero()[:, 0]
    sums = torch.zeros(len(batch.predicts), dtype=torch.float64, device=values.device)
    return [float(x) for x in sums.index_add(0, rows, values.double())]
