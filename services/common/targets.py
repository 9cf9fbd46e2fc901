"""Target shards: what a teacher predicts at every target token of packed sequences, sparsely.

A shard is one safetensors blob: the sequences' `tokens` (uint16 where the ids allow it, else int32,
one sequence behind the other), `offsets` int64 [n + 1], `is_target` (one bit a token, as
`numpy.packbits` sets them), `digests` uint8 [n, 32], and `payload` uint8 with `payload_offsets`
int64 [n + 1]; `kind` and `temperature` have one element. The payload of a sequence holds three
columns over its targets: how many ids each target has, the ids (ascending, as differences), and
what is known of each id. All are varints but the last column of `top_k`: float16 log-probabilities.

- `sampled`: how often each id was drawn with replacement. counts / draws is an unbiased estimate of
  the softmax (random sampling KD, arXiv 2503.16870); the draws of a target are its counts' sum.
- `top_k`: the most probable ids; the probability of all others is the target's `tail`.

A sequence is found by its digest, never by its place. Where sequences come from one text record
each, `records` uint8 [n, 32] may say which: the record's digest, and zeros where there is none. A
student with another tokenizer, whose sequences have other digests, finds its targets by these.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from services.common.errors import InvalidInput
from services.common.tensors import Array, pack_arrays, unpack_arrays
from services.common.varints import decode_varints, encode_varints

Kind = Literal["sampled", "top_k"]
KINDS: tuple[Kind, ...] = ("sampled", "top_k")
_MAX_ID = (1 << 31) - 1
_RECORDS, _NO_RECORD = "records", bytes(32)


def sequence_digest(tokens: Array, is_target: Array) -> bytes:
    """SHA-256 (32 bytes) over a sequence's tokens as int32 little-endian, then its mask as
    uint8."""
    ids = np.ascontiguousarray(tokens, "<i4").tobytes()
    return hashlib.sha256(ids + np.ascontiguousarray(is_target, np.uint8).tobytes()).digest()


@dataclass(frozen=True)
class SparseTargets:
    """What to store of one sequence: `tokens` int32 [t], `is_target` uint8 [t]; for every kept id,
    targets in order and ids ascending: `ids` int32 [m], `row` int32 [m] (0 is the first target),
    `values` [m]: counts (integers) of kind sampled, log-probabilities (float32) of kind top_k.
    `record` is the digest of its text record, 32 bytes, or empty."""

    tokens: Array
    is_target: Array
    ids: Array
    row: Array
    values: Array
    record: bytes = b""


@dataclass(frozen=True)
class SequenceTargets:
    """One sequence of a shard: `tokens` int32 [t], `is_target` uint8 [t]; `ids` int32 [m], `row`
    int32 [m] (0 is the first target), `weight` float32 [m] (share of the draws, or probability) and
    `tail` float32 [targets], the probability of all ids that are not there (0 of kind sampled)."""

    tokens: Array
    is_target: Array
    digest: bytes
    ids: Array
    row: Array
    weight: Array
    tail: Array


class TargetShard:
    """A shard that was read. Sequences are decoded when they are asked for."""

    def __init__(self, arrays: dict[str, Array], size_bytes: int) -> None:
        self._arrays, self._size_bytes = arrays, size_bytes
        self.kind: Kind = KINDS[int(arrays["kind"][0])]
        self.temperature = float(arrays["temperature"][0])
        count = int(arrays["offsets"][-1])
        self._is_target = np.unpackbits(arrays["is_target"], count=count)
        self.digests = [bytes(row) for row in arrays["digests"]]
        self.records = _read_records(arrays, len(self.digests))
        """Of each sequence the digest of its text record, empty where it is not stored."""

    def __len__(self) -> int:
        return len(self.digests)

    @property
    def token_count(self) -> int:
        """Target tokens of all sequences."""
        return int(self._is_target.sum())

    @property
    def bytes_per_token(self) -> float:
        """Bytes of the whole blob over target tokens."""
        return self._size_bytes / max(self.token_count, 1)

    @staticmethod
    def encode(
        sequences: Sequence[SparseTargets], *, kind: Kind, temperature: float = 1.0
    ) -> bytes:
        """Return the blob; equal sequences give equal bytes. Raises ValueError where ids do not
        ascend within a target."""
        payloads = [_encode_payload(one, kind) for one in sequences]
        tokens = _joined([one.tokens for one in sequences], np.int32)
        digests = b"".join(sequence_digest(one.tokens, one.is_target) for one in sequences)
        small = not len(tokens) or int(tokens.max()) < 1 << 16
        return pack_arrays(
            _written_records(sequences)
            | {
                "tokens": tokens.astype(np.uint16) if small else tokens,
                "offsets": _offsets([len(one.tokens) for one in sequences]),
                "is_target": np.packbits(_joined([s.is_target for s in sequences], np.uint8)),
                "digests": np.frombuffer(digests, np.uint8).reshape(-1, 32),
                "payload": np.frombuffer(b"".join(payloads), np.uint8),
                "payload_offsets": _offsets([len(one) for one in payloads]),
                "kind": np.array([KINDS.index(kind)], np.uint8),
                "temperature": np.array([temperature], np.float64),
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> TargetShard:
        """Return the shard of `data`. Raises InvalidInput where it is none."""
        arrays = unpack_arrays(data, what="target shard")
        _check(arrays)
        return cls(arrays, len(data))

    def sequence(self, at: int) -> SequenceTargets:
        """Decode one sequence. Raises InvalidInput where its payload is damaged."""
        begin, end = (int(x) for x in self._arrays["offsets"][at : at + 2])
        first, last = (int(x) for x in self._arrays["payload_offsets"][at : at + 2])
        is_target = self._is_target[begin:end]
        targets = int(is_target.sum())
        ids, row, values = _decode_payload(self._arrays["payload"][first:last], targets, self.kind)
        weight, tail = _weights(row, values, targets, self.kind)
        tokens = self._arrays["tokens"][begin:end].astype(np.int32)
        return SequenceTargets(tokens, is_target, self.digests[at], ids, row, weight, tail)


def _written_records(sequences: Sequence[SparseTargets]) -> dict[str, Array]:
    """The array of the records' digests; nothing where no sequence has one."""
    if not any(one.record for one in sequences):
        return {}
    rows = b"".join(one.record or _NO_RECORD for one in sequences)
    return {_RECORDS: np.frombuffer(rows, np.uint8).reshape(-1, len(_NO_RECORD))}


def _read_records(arrays: dict[str, Array], count: int) -> list[bytes]:
    if _RECORDS not in arrays:
        return [b""] * count
    return [b"" if not row.any() else bytes(row) for row in arrays[_RECORDS]]


def _weights(row: Array, values: Array, targets: int, kind: Kind) -> tuple[Array, Array]:
    """Return (weight float32 [m], tail float32 [targets])."""
    if kind == "sampled":
        draws = np.bincount(row, weights=values, minlength=targets)
        return (values / draws[row]).astype(np.float32), np.zeros(targets, np.float32)
    weight = np.exp(values.astype(np.float64))
    kept = np.bincount(row, weights=weight, minlength=targets)
    return weight.astype(np.float32), np.clip(1.0 - kept, 0.0, 1.0).astype(np.float32)


def _encode_payload(one: SparseTargets, kind: Kind) -> bytes:
    targets = int(np.asarray(one.is_target).sum())
    row, ids = np.asarray(one.row, np.int64), np.asarray(one.ids, np.int64)
    steps = np.diff(ids, prepend=0)
    starts = np.diff(row, prepend=-1) != 0
    steps[starts] = ids[starts]
    if len(ids) and (np.diff(row) < 0).any() or (steps[~starts] <= 0).any() or (ids < 0).any():
        raise ValueError("targets are not in order, or the ids of one do not ascend")
    head = encode_varints(np.bincount(row, minlength=targets)) + encode_varints(steps)
    if kind == "sampled":
        return head + encode_varints(np.asarray(one.values, np.int64))
    return head + np.ascontiguousarray(one.values, "<f2").tobytes()


def _decode_payload(data: Array, targets: int, kind: Kind) -> tuple[Array, Array, Array]:
    """Return (ids int32 [m], row int32 [m], values [m]) of a sequence's payload."""
    counts, rest = decode_varints(data, targets)
    total = int(counts.sum())
    if total > len(data):
        raise InvalidInput("target shard: a payload is shorter than it says", field="targets")
    steps, rest = decode_varints(rest, total)
    row = np.repeat(np.arange(targets, dtype=np.int32), counts)
    running = np.cumsum(steps)
    starts = np.cumsum(counts) - counts
    before = np.where(starts > 0, running[np.maximum(starts - 1, 0)] if total else 0, 0)
    ids = running - np.repeat(before, counts)
    if total and int(ids.max()) > _MAX_ID:
        raise InvalidInput("target shard: an id is out of range", field="targets")
    if kind == "sampled":
        values, rest = decode_varints(rest, total)
        damaged = bool(len(rest)) or bool((values < 1).any())
    else:
        damaged = len(rest) != 2 * total
        values = np.frombuffer(rest.tobytes()[: 2 * total], "<f2").astype(np.float32)
        damaged = damaged or not bool((values <= 0.01).all())
    if damaged:
        raise InvalidInput("target shard: a payload is damaged", field="targets")
    return ids.astype(np.int32), row, values


def _joined(parts: Sequence[Array], dtype: type[np.generic]) -> Array:
    return np.concatenate([np.asarray(p, dtype) for p in parts]) if parts else np.zeros(0, dtype)


def _offsets(lengths: Sequence[int]) -> Array:
    return np.concatenate([[0], np.cumsum(np.asarray(lengths, np.int64))]).astype(np.int64)


_FORM: dict[str, tuple[str, int]] = {
    "tokens": ("ui", 1),
    "offsets": ("i", 1),
    "is_target": ("u", 1),
    "digests": ("u", 2),
    "payload": ("u", 1),
    "payload_offsets": ("i", 1),
    "kind": ("u", 1),
    "temperature": ("f", 1),
}


def _check(arrays: dict[str, Array]) -> None:
    """Raise InvalidInput unless the arrays fit together, so that decoding reads nothing outside."""
    fits = set(arrays) - {_RECORDS} == set(_FORM) and all(
        arrays[name].dtype.kind in kinds and arrays[name].ndim == dimensions
        for name, (kinds, dimensions) in _FORM.items()
    )
    fits = fits and _rises(arrays["offsets"], len(arrays["tokens"]))
    fits = fits and _rises(arrays["payload_offsets"], len(arrays["payload"]))
    if not fits or not _agree(arrays):
        raise InvalidInput("the blob is not a target shard", field="targets")


def _rises(offsets: Array, end: int) -> bool:
    ordered = len(offsets) and offsets[0] == 0 and offsets[-1] == end
    return bool(ordered) and bool((offsets[1:] >= offsets[:-1]).all())


def _predictable(arrays: dict[str, Array]) -> bool:
    """Whether tokens are ids, and no sequence's first token is a target."""
    tokens, offsets = arrays["tokens"], arrays["offsets"]
    firsts = offsets[:-1][offsets[1:] > offsets[:-1]]
    is_target = np.unpackbits(arrays["is_target"], count=len(tokens))
    ids = not len(tokens) or (int(tokens.min()) >= 0 and int(tokens.max()) <= _MAX_ID)
    return ids and not bool(is_target[firsts].any())


def _agree(arrays: dict[str, Array]) -> bool:
    count = len(arrays["offsets"]) - 1
    return (
        len(arrays["payload_offsets"]) == count + 1
        and arrays["digests"].shape == (count, 32)
        and (_RECORDS not in arrays or _is_digests(arrays[_RECORDS], count))
        and len(arrays["is_target"]) == -(-len(arrays["tokens"]) // 8)
        and arrays["kind"].shape == arrays["temperature"].shape == (1,)
        and int(arrays["kind"][0]) < len(KINDS)
        and bool(np.isfinite(arrays["temperature"]).all())
        and arrays["is_target"].dtype == arrays["payload"].dtype == np.uint8
        and _predictable(arrays)
    )


def _is_digests(array: Array, count: int) -> bool:
    return array.shape == (count, 32) and array.dtype == np.uint8
