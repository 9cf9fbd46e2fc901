"""Text embeddings with a memory: a text is computed once, and never depends on its neighbours.

A concept set is embedded by one call or by many, with any part of it remembered already, so a row
may not depend on which other texts it was computed with: the model runs texts at a fixed batch
shape that each text's own length chooses.

Each project has a memory of its own: what a call spends would tell whether another has asked for
the same words before.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from services.common import metrics
from services.common.accounting import Tally, noted
from services.common.device import Device
from services.common.errors import InvalidInput
from services.common.fairness import Flow
from services.common.tensors import Array

MAX_TEXTS = 4096
MAX_CHARACTERS = 1000
_AT_ONCE = 128
"""Texts computed before the thread is offered to waiting images."""


def check_texts(texts: Sequence[str], *, field: str = "texts") -> list[str]:
    """Return the texts. Raises InvalidInput where there are none or too many, or one is empty or
    too long.
    """
    if not 1 <= len(texts) <= MAX_TEXTS:
        raise InvalidInput(f"{field}: {len(texts)} texts; use 1 to {MAX_TEXTS:,}", field=field)
    for at, text in enumerate(texts):
        if not text.strip() or len(text) > MAX_CHARACTERS:
            where = f"{field}[{at}]"
            raise InvalidInput(
                f"{where}: a text has 1 to {MAX_CHARACTERS:,} characters, not all blank",
                field=where,
            )
    return list(texts)


class Texts:
    """Embeds texts on the encoder's device and keeps the `keep` last used, by project."""

    def __init__(
        self, embed: Callable[[list[str]], Array], device: Device, *, name: str, keep: int
    ) -> None:
        self._embed, self._device, self._name, self._keep = embed, device, name, keep
        self._known: OrderedDict[tuple[str, str], Array] = OrderedDict()

    async def embed(
        self, texts: Sequence[str], *, project: str = "", tally: Tally | None = None
    ) -> Array:
        """Return float16 [texts, D], unit rows; `tally` adds up what that took. Texts of the
        service itself are of no project."""
        remembered = ((text, self._known.get((project, text))) for text in texts)
        found = {text: row for text, row in remembered if row is not None}
        # Those of about one length come together: the model has a shape for each length.
        missing = sorted({text for text in texts if text not in found}, key=lambda t: (len(t), t))
        metrics.look_up("texts", hits=len(found), misses=len(missing))
        for at in range(0, len(missing), _AT_ONCE):
            part = missing[at : at + _AT_ONCE]
            work = noted(partial(self._embed, part), self._name, items=len(part), tally=tally)
            rows = await self._device.run(work, flow=Flow(project))
            found.update(zip(part, rows, strict=True))
        self._remember(project, found)
        return np.stack([found[text] for text in texts])

    def _remember(self, project: str, used: dict[str, Array]) -> None:
        for text, row in used.items():
            self._known[project, text] = row
            self._known.move_to_end((project, text))
        while len(self._known) > self._keep:
            self._known.popitem(last=False)
