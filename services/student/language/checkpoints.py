"""The whole state of a training in safetensors and JSON, so that nothing is ever unpickled.

weights.safetensors     the trained tensors by name
best.safetensors        the best ones so far, where training may stop early
optimizer.safetensors   `{index}.{name}`, as torch numbers the parameters
rng.safetensors         torch's generators: `cpu`, `cuda`
state.json              counters, curves, rates of optimizer and scheduler
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

Weights = dict[str, Tensor]
_RATES = ("lr", "initial_lr")


def trained_weights(model: nn.Module) -> Weights:
    """The tensors that training changes, by name, on their device; tied ones once."""
    return {
        name: weight.detach().contiguous()
        for name, weight in model.named_parameters()
        if weight.requires_grad
    }


def load_weights(model: nn.Module, weights: Weights) -> None:
    """Put trained tensors back. Raises KeyError where one is missing."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                weight.copy_(weights[name])


def save_weights(path: Path, weights: Weights) -> None:
    """Write tensors as safetensors."""
    save_file({name: weight.cpu() for name, weight in weights.items()}, path)


def read_weights(path: Path) -> Weights:
    """Tensors of a safetensors file, on the CPU."""
    return load_file(path)


def save_optimizer(path: Path, optimizer: Any) -> list[dict[str, float]]:
    """Write an optimizer's tensors; returns the rates of its groups."""
    state = optimizer.state_dict()
    tensors = {
        f"{index}.{name}": value.cpu().contiguous()
        for index, entries in state["state"].items()
        for name, value in entries.items()
    }
    save_file(tensors, path)
    return [{name: float(g[name]) for name in _RATES if name in g} for g in state["param_groups"]]


def load_optimizer(path: Path, optimizer: Any, rates: list[dict[str, float]]) -> None:
    """Put an optimizer's tensors and rates back."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in load_file(path).items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    groups = optimizer.state_dict()["param_groups"]
    for group, rate in zip(groups, rates, strict=True):
        group.update(rate)
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def scheduler_state(scheduler: Any) -> dict[str, Any]:
    """What a learning-rate scheduler has counted, as JSON."""
    kept: dict[str, Any] = json.loads(
        json.dumps({k: v for k, v in scheduler.state_dict().items() if k != "lr_lambdas"})
    )
    return kept


def load_scheduler(scheduler: Any, state: dict[str, Any]) -> None:
    """Put a scheduler's counters back."""
    scheduler.load_state_dict(state | {"lr_lambdas": [None] * len(scheduler.lr_lambdas)})


def save_generators(path: Path) -> None:
    """Write the state of torch's random number generators."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    save_file(states, path)


def load_generators(path: Path) -> None:
    """Put the state of torch's random number generators back."""
    states = load_file(path)
    torch.set_rng_state(states["cpu"])
    if torch.cuda.is_available() and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
