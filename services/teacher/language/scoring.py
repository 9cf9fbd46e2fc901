"""Log-probabilities of given answers after their prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from services.common.tensors import Array
from services.teacher.language.heads import ROWS, Head, hidden_states
from services.torch_common.language.loading import LoadedLanguageModel


@dataclass(frozen=True)
class ScoreInput:
    """`ids` int32 [t], prompt and answer; tokens from `start` on (never the first) are scored."""

    ids: Array
    start: int

    @property
    def scored(self) -> Array:
        """Ids of the scored tokens, int32 [s]."""
        return self.ids[max(self.start, 1) :]


@torch.inference_mode()
def score(
    loaded: LoadedLanguageModel,
    head: Head,
    items: Sequence[ScoreInput],
    *,
    side: Literal["left", "right"] = "right",
) -> list[Array]:
    """Return float32 [s] per item: the natural log-probability of each scored token.

    One forward pass; logits exist at answer tokens only, some rows at a time.
    """
    with loaded.activated() as model:
        hidden = hidden_states(model, [item.ids for item in items], side=side)
    longest = hidden.shape[1]
    rows, places = [], []
    for at, item in enumerate(items):
        shift = longest - len(item.ids) if side == "left" else 0
        first = max(item.start, 1)
        # The state of a token predicts the next one.
        places.append(np.arange(first - 1, len(item.ids) - 1) + shift)
        rows.append(np.full(len(item.ids) - first, at))
    targets = np.concatenate([item.scored for item in items]).astype(np.int64)
    picked = hidden[
        torch.from_numpy(np.concatenate(rows)), torch.from_numpy(np.concatenate(places))
    ]
    found = [
        _log_probabilities(head, picked[at : at + ROWS], targets[at : at + ROWS])
        for at in range(0, len(targets), ROWS)
    ]
    joined = np.concatenate(found) if found else np.zeros(0, np.float32)
    return np.split(joined, np.cumsum([len(item.scored) for item in items])[:-1])


def _log_probabilities(head: Head, hidden: torch.Tensor, targets: Array) -> Array:
    logits = head(hidden)
    wanted = torch.from_numpy(targets).to(logits.device)
    chosen = logits.gather(1, wanted[:, None])[:, 0]
    return (chosen - torch.logsumexp(logits, dim=1)).cpu().numpy()
