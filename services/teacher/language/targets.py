"""SampleTargets: from packed sequences to a target shard."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from services.common.targets import Kind, SparseTargets
from services.teacher.language import sampling
from services.teacher.language.heads import ROWS, Head, hidden_states
from services.teacher.language.sampling import Kept, SizeModel
from services.torch_common.language.loading import LoadedLanguageModel
from services.torch_common.language.packing import PackedSequence

_MEASURED_ROWS = 256
"""Rows of a sequence whose distributions decide how many draws it gets, evenly spread."""
_SEQUENCE_BYTES = 32 + 2 * 8
"""Bytes a sequence costs besides tokens and payload: its digest and its two offsets."""
_RECORD_BYTES = 32
"""Bytes of the digest of a sequence's text record, where it is stored."""
_TOKEN_BYTES = 2 + 1 / 8


@dataclass(frozen=True)
class TargetOptions:
    """What to keep: `bytes_per_token` counts all that is stored; `top_k` 0 means by that budget."""

    kind: Kind = "sampled"
    bytes_per_token: float = 40.0
    top_k: int = 0
    temperature: float = 1.0
    seed: int = 0

    def payload_bytes(self, one: PackedSequence, vocab: int) -> float:
        """Bytes left for each target once the sequence itself is stored."""
        token_bytes = _TOKEN_BYTES if vocab <= 1 << 16 else _TOKEN_BYTES + 2
        fixed = _SEQUENCE_BYTES + token_bytes * len(one.tokens)
        fixed += _RECORD_BYTES * bool(self.record_of(one))
        spare = sampling.MARGIN * self.bytes_per_token
        return spare - fixed / max(one.target_count, 1)

    def record_of(self, one: PackedSequence) -> bytes:
        """What is stored of the sequence's record. Draws serve students of the same tokenizer
        alone, who find the sequence by its own digest."""
        return one.record if self.kind == "top_k" else b""


@torch.inference_mode()
def sparse_targets(
    loaded: LoadedLanguageModel, head: Head, batch: Sequence[PackedSequence], options: TargetOptions
) -> list[SparseTargets]:
    """Return the targets of each sequence of one forward pass."""
    with loaded.activated() as model:
        hidden = hidden_states(model, [one.tokens for one in batch])
    found = []
    for at, one in enumerate(batch):
        # The state of a token predicts the next one; a sequence's first token is never a target.
        before = np.flatnonzero(one.is_target) - 1
        rows = hidden[at, torch.from_numpy(before).to(hidden.device)]
        kept = _keep(head, rows, one, options)
        found.append(
            SparseTargets(
                one.tokens,
                one.is_target,
                np.concatenate([part.ids for part in kept]).astype(np.int32),
                np.concatenate([part.row for part in kept]).astype(np.int32),
                np.concatenate([part.values for part in kept]),
                options.record_of(one),
            )
        )
    return found


def _keep(head: Head, rows: Tensor, one: PackedSequence, options: TargetOptions) -> list[Kept]:
    """What is kept of a sequence's rows [targets, d], some rows at a time."""
    budget = options.payload_bytes(one, head.vocab_size)
    if options.kind == "top_k":
        count = options.top_k or sampling.ids_for(budget, head.vocab_size)
        parts = _distributions(head, rows, options.temperature)
        return _in_order(sampling.most_probable(p, count) for p in parts)
    spread = rows[_evenly(len(rows))]
    measured = list(_distributions(head, spread, options.temperature))
    draws = SizeModel(measured).draws(budget)
    random = sampling.seeded(options.seed, one.digest)
    again = len(spread) < len(rows)
    parts = _distributions(head, rows, options.temperature) if again else iter(measured)
    return _in_order(sampling.draw(p, draws, random) for p in parts)


def _distributions(head: Head, rows: Tensor, temperature: float) -> Iterator[Tensor]:
    """Yield the softmax at a temperature, float32 [some rows, vocabulary] at a time."""
    for at in range(0, len(rows), ROWS):
        logits = head(rows[at : at + ROWS])
        yield torch.softmax(logits if temperature == 1.0 else logits / temperature, dim=1)


def _evenly(count: int) -> Tensor:
    if count <= _MEASURED_ROWS:
        return torch.arange(count)
    return torch.linspace(0, count - 1, _MEASURED_ROWS).long()


def _in_order(parts: Iterable[Kept]) -> list[Kept]:
    """Number the rows of all parts through."""
    return [replace(part, row=part.row + at * ROWS) for at, part in enumerate(parts)]
