"""The whole state of a training in safetensors and JSON, so that nothing is ever unpickled.

weights     the trained tensors by name, and buffers such as the running means of batch norms
best        the best ones so far, where training may stop early
optimizer   `{index}.{name}`, as torch numbers the parameters
rng         torch's generators: `cpu`, `cuda`; of each rank
state.json  counters, curves, rates of optimizer and scheduler

Tensors are in files that any number of ranks can read (services.student.slices).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from services.student.ranks import Ranks
from services.student.slices import Slices, write

Weights = dict[str, Tensor]
Card = dict[str, Any]
_RATES = ("lr", "initial_lr")


def trained_tensors(module: nn.Module) -> Weights:
    """The tensors that training changes, by name, where they are; tied ones once."""
    stored = module.state_dict().keys()
    found = {name: one for name, one in module.named_parameters() if one.requires_grad}
    return found | {name: one for name, one in module.named_buffers() if name in stored}


def copied(weights: Mapping[str, Tensor]) -> Weights:
    """Copies that training leaves alone."""
    return {name: weight.detach().clone() for name, weight in weights.items()}


@torch.no_grad()
def put_back(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Make a module's trained tensors those given. Raises KeyError where one is missing."""
    for name, own in trained_tensors(module).items():
        own.copy_(weights[name])


def read_weights(folder: Path, stem: str, module: nn.Module) -> Weights | None:
    """What was written of a module's trained tensors; None where nothing was."""
    with Slices(folder, stem) as slices:
        if not slices.exist:
            return None
        return {name: slices.like(name, own) for name, own in trained_tensors(module).items()}


def save(
    folder: Path,
    module: nn.Module,
    best: Weights | None,
    optimizer: Any,
    scheduler: Any,
    progress: Card,
    ranks: Ranks,
) -> None:
    """Write the state of a training, each rank its part, into a folder that was empty."""
    write(folder, "weights", trained_tensors(module), ranks)
    if best is not None:
        write(folder, "best", best, ranks)
    write(folder, "optimizer", _optimizer_tensors(optimizer), ranks)
    _save_generators(folder, ranks)
    if ranks.first:
        rates = [
            {name: float(group[name]) for name in _RATES if name in group}
            for group in optimizer.param_groups
        ]
        state = {"progress": progress, "rates": rates, "schedule": _schedule(scheduler)}
        (folder / "state.json").write_text(json.dumps(state))


def read_progress(folder: Path) -> Card:
    """What `save` was given as progress."""
    progress: Card = json.loads((folder / "state.json").read_text())["progress"]
    return progress


def load_steps(folder: Path, optimizer: Any, scheduler: Any) -> None:
    """Put optimizer and schedule back."""
    kept = json.loads((folder / "state.json").read_text())
    groups = optimizer.state_dict()["param_groups"]
    for group, rate in zip(groups, kept["rates"], strict=True):
        group.update(rate)
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    with Slices(folder, "optimizer") as slices:
        for key in slices.names():
            index, _, name = key.partition(".")
            like = _state_like(parameters[int(index)], name)
            state.setdefault(int(index), {})[name] = slices.like(key, like)
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    lambdas = [None] * len(scheduler.lr_lambdas)
    scheduler.load_state_dict(kept["schedule"] | {"lr_lambdas": lambdas})


def load_generators(folder: Path, ranks: Ranks) -> None:
    """Put torch's random number generators back; a rank that was not there keeps its own."""
    path = folder / _generators(ranks)
    if not path.exists():
        return
    states = load_file(path)
    torch.set_rng_state(states["cpu"])
    if torch.cuda.is_available() and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])


def _state_like(parameter: Tensor, name: str) -> Tensor:
    """A tensor sharded as an optimizer's entry of a parameter is; counts of steps are not."""
    return torch.empty(0) if name == "step" else parameter


def _optimizer_tensors(optimizer: Any) -> Weights:
    return {
        f"{index}.{name}": value.full_tensor()
        if name == "step" and isinstance(value, DTensor)
        else value
        for index, entries in optimizer.state_dict()["state"].items()
        for name, value in entries.items()
    }


def _schedule(scheduler: Any) -> Card:
    """What a learning-rate scheduler has counted, as JSON."""
    told = {k: v for k, v in scheduler.state_dict().items() if k != "lr_lambdas"}
    kept: Card = json.loads(json.dumps(told))
    return kept


def _save_generators(folder: Path, ranks: Ranks) -> None:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    save_file(states, folder / _generators(ranks))


def _generators(ranks: Ranks) -> str:
    return "rng.safetensors" if ranks.first else f"rng.{ranks.rank:04d}.safetensors"
