"""Records and target shards of a language recipe, as sequences and as padded batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from stillhouse.common.v1 import items_pb2
from torch import Tensor

from services.common.blobs import BlobStore, check_digest
from services.common.errors import InvalidInput, Precondition
from services.common.targets import Kind, SequenceTargets, TargetShard
from services.common.texts import TextRecord, unpack_records
from services.student.language.sparse_losses import SparseTargets
from services.torch_common.language.packing import PackedSequence

Refs = Iterable[items_pb2.BlobRef]


def read_records(blobs: BlobStore, project: str, refs: Refs, *, field: str) -> list[TextRecord]:
    """The text records of shards, in order. Raises NotFound, InvalidInput."""
    found: list[TextRecord] = []
    for ref in refs:
        found += unpack_records(blobs.get(project, check_digest(ref.digest, field=field)))
    return found


class TargetBank:
    """The stored targets of several shards, found by the digest of their sequence."""

    def __init__(self, shards: Sequence[TargetShard]) -> None:
        self.shards = shards
        self._places = {
            digest: (shard, at) for shard in shards for at, digest in enumerate(shard.digests)
        }

    @property
    def kind(self) -> Kind:
        """What all shards hold."""
        return self.shards[0].kind

    @property
    def temperature(self) -> float:
        """The teacher's temperature in all shards."""
        return self.shards[0].temperature

    @property
    def bytes_per_token(self) -> float:
        """Bytes stored per target token, everything counted."""
        stored = sum(shard.bytes_per_token * shard.token_count for shard in self.shards)
        return stored / max(self.token_count, 1)

    @property
    def token_count(self) -> int:
        """Target tokens."""
        return sum(shard.token_count for shard in self.shards)

    def knows(self, digest: bytes) -> bool:
        """Whether the sequence has targets."""
        return digest in self._places

    def find(self, digest: bytes) -> SequenceTargets | None:
        """The targets of a sequence; None where there are none. Raises InvalidInput if damaged."""
        place = self._places.get(digest)
        return None if place is None else place[0].sequence(place[1])

    def targets_of(self, sequence: PackedSequence) -> SequenceTargets | None:
        """The targets of a sequence's target tokens, in order; None where there are none. Raises
        InvalidInput if damaged."""
        return self.find(sequence.digest)

    def sequences(self, vocab_size: int) -> list[PackedSequence]:
        """All sequences, in order. Raises Precondition where an id is outside the vocabulary."""
        found = []
        for shard in self.shards:
            for at in range(len(shard)):
                one = shard.sequence(at)
                largest = max(int(one.tokens.max(initial=0)), int(one.ids.max(initial=0)))
                if largest >= vocab_size:
                    raise Precondition(
                        f"targets name id {largest}, the student's vocabulary has {vocab_size}",
                        differences={"vocabulary": f"{largest} >= {vocab_size}"},
                    )
                found.append(PackedSequence(one.tokens, one.is_target))
        return found


def read_targets(blobs: BlobStore, project: str, refs: Refs, *, field: str) -> TargetBank | None:
    """The targets of shards; None without shards. Raises NotFound, InvalidInput, and Precondition
    where shards are of several kinds or temperatures.
    """
    shards = [
        TargetShard.from_bytes(blobs.get(project, check_digest(ref.digest, field=field)))
        for ref in refs
    ]
    if not shards:
        return None
    if len({(shard.kind, shard.temperature) for shard in shards}) > 1:
        raise Precondition(f"{field}: the shards are of several kinds or temperatures")
    return TargetBank(shards)


@dataclass(frozen=True)
class Batch:
    """Padded sequences and what to predict. N tokens are targets, in the order of `predicts`; the
    those where `is_distilled` have stored targets."""

    input_ids: Tensor
    """int64 [B, T], padded on the right with 0."""
    attention_mask: Tensor
    """int64 [B, T]."""
    predicts: Tensor
    """bool [B, T]: positions whose next token is a target."""
    labels: Tensor
    """int64 [N]: these next tokens."""
    is_distilled: Tensor
    """bool [N]: tokens whose targets are in `targets`."""
    targets: SparseTargets | None
    """Of the distilled tokens, in order."""

    @property
    def token_count(self) -> int:
        """Target tokens."""
        return len(self.labels)

    def to(self, device: torch.device | str) -> Batch:
        """The batch on a device."""
        targets = None if self.targets is None else self.targets.to(device)
        return Batch(
            self.input_ids.to(device, non_blocking=True),
            self.attention_mask.to(device, non_blocking=True),
            self.predicts.to(device, non_blocking=True),
            self.labels.to(device, non_blocking=True),
            self.is_distilled.to(device, non_blocking=True),
            targets,
        )


def collate(sequences: Sequence[PackedSequence], bank: TargetBank | None = None) -> Batch:
    """Pad sequences and join their targets. A sequence that the bank does not know has none."""
    longest = max(len(one.tokens) for one in sequences)
    ids = np.zeros((len(sequences), longest), np.int64)
    mask = np.zeros((len(sequences), longest), np.int64)
    predicts = np.zeros((len(sequences), longest), bool)
    for row, one in enumerate(sequences):
        ids[row, : len(one.tokens)] = one.tokens
        mask[row, : len(one.tokens)] = 1
        predicts[row, : len(one.tokens) - 1] = one.is_target[1:]
    labels = np.concatenate([one.tokens[1:][one.is_target[1:] > 0] for one in sequences])
    found = [None if bank is None else bank.targets_of(one) for one in sequences]
    counts = [one.target_count for one in sequences]
    return Batch(
        torch.from_numpy(ids),
        torch.from_numpy(mask),
        torch.from_numpy(predicts),
        torch.from_numpy(labels.astype(np.int64)),
        torch.from_numpy(np.repeat([one is not None for one in found], counts)),
        join_targets([one for one in found if one is not None]),
    )


def by_length(sequences: Sequence[PackedSequence]) -> list[PackedSequence]:
    """Sequences by rising length, the order in which a batch of them is padded least."""
    return sorted(sequences, key=lambda one: len(one.tokens))


def join_targets(found: Sequence[SequenceTargets]) -> SparseTargets | None:
    """Targets of several sequences as one; None without any."""
    if not found:
        return None
    starts = np.cumsum([0, *(len(one.tail) for one in found)])
    rows = [one.row.astype(np.int64) + start for one, start in zip(found, starts, strict=False)]
    return SparseTargets(
        torch.from_numpy(np.concatenate([one.ids for one in found]).astype(np.int64)),
        torch.from_numpy(np.concatenate(rows)),
        torch.from_numpy(np.concatenate([one.weight for one in found])),
        torch.from_numpy(np.concatenate([one.tail for one in found])),
    )


def check_sequences(sequences: Sequence[PackedSequence], context_length: int, field: str) -> None:
    """Raise InvalidInput without sequences, Precondition where one is over the context."""
    if not sequences:
        raise InvalidInput(f"{field}: no sequence to train on", field=field)
    longest = max(len(one.tokens) for one in sequences)
    if longest > context_length:
        raise Precondition(
            f"{field}: a sequence of {longest:,} tokens, the student's context has "
            f"{context_length:,}",
            differences={"context_length": f"{longest} > {context_length}"},
        )
