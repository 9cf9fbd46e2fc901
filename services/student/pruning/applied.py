"""A recipe's cut carried out on the model it starts from, and what the card says of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from stillhouse.student.v1 import student_pb2
from torch import Tensor

from services.common.blobs import BlobStore
from services.student.artefacts import Card
from services.student.pruning.architecture import shape_of
from services.student.pruning.choice import Kept, choose, choose_at_random
from services.student.pruning.cut import cut, with_random_weights
from services.student.pruning.requests import read_shape
from services.student.pruning.scores import Importance
from services.student.pruning.shape import Shape, spread


@dataclass(frozen=True)
class Pruned:
    """A cut beside what it was cut out of."""

    model: Any
    whole: Any
    """The model as it was."""
    layers: tuple[int, ...]
    """Of the whole model, those that the cut's stand for; where no weights were kept, at equal
    distances."""
    channels: Tensor
    """int64 [hidden_size] on the CPU: likewise; where no weights were kept, the first ones."""
    card: Card
    """What was cut, for people."""


def prune(
    model: Any,
    digest: str,
    asked: student_pb2.PruneCut,
    blobs: BlobStore,
    project: str,
) -> Pruned:
    """The pruned model, cut out of the model with this digest.

    Raises NotFound without the importance, InvalidInput where the shape cannot be, Precondition for
    another architecture or the importance of another model.
    """
    base = shape_of(model)
    shape = read_shape(asked.shape, base)
    seed = asked.seed & 0x7FFF_FFFF
    card: Card = {
        "chosen_by": "importance",
        "shape": shape_card(shape),
        "from_shape": shape_card(base),
    }
    if asked.from_random_weights:
        card |= {"chosen_by": "nothing kept, random weights", "seed": seed}
        made = with_random_weights(model, shape, seed)
        layers = shape.kept_layers or tuple(spread(base.layers, shape.layers))
        return Pruned(made, model, layers, torch.arange(shape.hidden_size), card)
    if asked.random:
        kept = choose_at_random(base, shape, seed)
        card |= {"chosen_by": "chance", "seed": seed}
    else:
        kept = _important(base, shape, digest, blobs.get(project, asked.importance.digest))
        card["importance"] = asked.importance.digest
    card |= {"kept_layers": list(kept.layers)}
    return Pruned(cut(model, shape, kept), model, kept.layers, kept.channels, card)


def shape_card(shape: Shape) -> Card:
    """A shape's sizes and parameters as JSON."""
    sizes = {name: value for name, value in asdict(shape).items() if name != "kept_layers"}
    return sizes | {
        "parameters": shape.parameters,
        "non_embedding_parameters": shape.non_embedding_parameters,
    }


def _important(base: Shape, shape: Shape, digest: str, data: bytes) -> Kept:
    importance = Importance.from_bytes(data)
    importance.check_of(base, digest)
    return choose(importance, base, shape)
