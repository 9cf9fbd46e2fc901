"""Intermediate states: a cut is drawn to what the model as it was has in mind, layer by layer.

The whole model's states are far too large to store, so it runs beside the student (Minitron,
arXiv 2407.14679, section 4.1: logits and intermediate states where depth is strongly reduced).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from services.student.language.data import Batch
from services.student.language.losses import balanced, intermediate_loss
from services.student.language.objective import distillation_loss, passes, target_logits
from services.student.language.options import LossOptions
from services.student.language.sparse_losses import entropy
from services.student.language.students import LanguageStudent
from services.student.pruning.shape import spread

_PROJECTION = "state_projection"
Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class StateGuide:
    """The model as it was, beside its cut."""

    teacher: Any
    """transformers' module, in evaluation mode and the type that the student computes in."""
    pairs: Pairs
    """(layer of the student, layer of the teacher) after which their states are compared."""

    def compare(self, model: Any, batch: Batch, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(logits [N, V] of the batch's target tokens, how far apart the states there are)."""
        mine, its = zip(*self.pairs, strict=True)
        with _recorded(model.get_decoder(), mine) as seen:
            logits = target_logits(model, batch, dtype=dtype)
        parts = passes(batch.attention_mask.sum(dim=1).cpu().numpy())
        with _recorded(self.teacher.get_decoder(), its) as told:
            self._run(batch, parts, dtype)
        wanted = [batch.predicts[rows, :longest] for rows, longest in parts]
        projection = getattr(model, _PROJECTION, None)
        apart = intermediate_loss(
            [_picked(seen[at], wanted) for at in mine],
            [_picked(told[at], wanted) for at in its],
            None if projection is None else projection.weight,
        )
        return logits, apart

    @torch.no_grad()
    def _run(self, batch: Batch, parts: list[tuple[slice, int]], dtype: torch.dtype) -> None:
        """The teacher's forward passes, without its output layer."""
        decoder = self.teacher.get_decoder()
        device = batch.input_ids.device.type
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            for rows, longest in parts:
                decoder(
                    input_ids=batch.input_ids[rows, :longest],
                    attention_mask=batch.attention_mask[rows, :longest],
                    use_cache=False,
                )


def attach(student: LanguageStudent, layers: int) -> StateGuide | None:
    """The guide of a cut that is trained on `layers` of its kept layers; None for 0. Where widths
    differ, the student's model gets a projection, trained with it, until `detach`."""
    cut = student.guide
    if cut is None or not layers:
        return None
    own = [*cut.layers]
    pairs = tuple((at, own[at]) for at in spread(len(own), layers))
    width, whole = len(cut.channels), int(cut.whole.config.hidden_size)
    if width != whole:
        student.model.add_module(_PROJECTION, _projection(cut.channels, whole, student.model))
    return StateGuide(cut.whole.to(student.dtype).eval(), pairs)


def detach(student: LanguageStudent) -> None:
    """Let go of the guide and its projection."""
    student.guide = None
    if hasattr(student.model, _PROJECTION):
        delattr(student.model, _PROJECTION)


def guided_loss(
    model: Any,
    batch: Batch,
    guide: StateGuide | None,
    options: LossOptions,
    kind: str,
    *,
    dtype: torch.dtype,
    whole: Callable[[Tensor], Tensor] = lambda means: means,
) -> Tensor:
    """The loss of a step on targets of a kind: the distillation loss, and beside a guide how far
    apart the states are, at equal weight. `whole` makes means over this batch's target tokens
    those over all of the step's, where the batch is a rank's share."""
    if guide is None:
        return distillation_loss(target_logits(model, batch, dtype=dtype), batch, options, kind)
    logits, apart = guide.compare(model, batch, dtype)
    loss = distillation_loss(logits, batch, options, kind)
    size, distance = whole(torch.stack([loss - _floor(batch, options, kind), apart]).detach())
    return balanced(loss, apart, size=size, other_size=distance)


def _floor(batch: Batch, options: LossOptions, kind: str) -> Tensor | float:
    """What no student can take from the loss: against draws it is a cross-entropy, which ends at
    their entropy and not at 0."""
    if kind != "sampled" or batch.targets is None:
        return 0.0
    share = (1 - options.cross_entropy_weight) * batch.is_distilled.float().mean()
    return options.temperature**2 * share * entropy(batch.targets)


def _projection(channels: Tensor, whole: int, model: Any) -> nn.Linear:
    """A projection that begins by putting each channel back in its place."""
    weight = torch.zeros(whole, len(channels))
    weight[channels, torch.arange(len(channels))] = 1
    made = nn.Linear(len(channels), whole, bias=False, device="meta")
    made.weight = nn.Parameter(weight.to(next(model.parameters()).device))
    return made


def _picked(made: list[Tensor], wanted: list[Tensor]) -> Tensor:
    """States [N, h] where tokens are to be predicted, of passes [B, T, h]."""
    return torch.cat([one[where] for one, where in zip(made, wanted, strict=True)])


@contextmanager
def _recorded(decoder: Any, layers: Sequence[int]) -> Iterator[dict[int, list[Tensor]]]:
    """What comes out of layers, pass by pass."""
    seen: dict[int, list[Tensor]] = {at: [] for at in layers}
    handles = [decoder.layers[at].register_forward_hook(_into(seen[at])) for at in layers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _into(made: list[Tensor]) -> Any:
    def keep(_: nn.Module, __: Any, output: Tensor) -> None:
        made.append(output)

    return keep
