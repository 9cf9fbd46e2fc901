"""Whole checkpoints of a classifier's training: safetensors and JSON, nothing is ever unpickled.

weights.safetensors     every tensor of the network, the running means of batch norms included
best.safetensors        the best of them so far, where training may stop early
optimizer.safetensors, rng.safetensors, state.json   as services.student.language.checkpoints
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from services.student.language import checkpoints as common

Weights = dict[str, Tensor]


def weights_of(module: nn.Module) -> Weights:
    """Copies of all parameters and buffers, on the CPU, in one layout."""
    return {name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}


def save(
    folder: Path,
    module: nn.Module,
    best: Weights | None,
    optimizer: Any,
    scheduler: Any,
    progress: dict[str, Any],
) -> None:
    """Write the state of a training into an empty folder."""
    save_file(weights_of(module), folder / "weights.safetensors")
    if best is not None:
        save_file(best, folder / "best.safetensors")
    common.save_generators(folder / "rng.safetensors")
    rates = common.save_optimizer(folder / "optimizer.safetensors", optimizer)
    schedule = common.scheduler_state(scheduler)
    state = {"progress": progress, "rates": rates, "schedule": schedule}
    (folder / "state.json").write_text(json.dumps(state))


def load_module(folder: Path, module: nn.Module) -> None:
    """Put a network's tensors back."""
    module.load_state_dict(load_file(folder / "weights.safetensors"), strict=True)


def load_best(folder: Path) -> Weights | None:
    """The best tensors so far, None where none were kept."""
    path = folder / "best.safetensors"
    return load_file(path) if path.exists() else None


def load_steps(folder: Path, optimizer: Any, scheduler: Any) -> None:
    """Put optimizer and schedule back."""
    state = json.loads((folder / "state.json").read_text())
    common.load_optimizer(folder / "optimizer.safetensors", optimizer, state["rates"])
    common.load_scheduler(scheduler, state["schedule"])


def load_generators(folder: Path) -> None:
    """Put torch's random number generators back."""
    common.load_generators(folder / "rng.safetensors")


def read_progress(folder: Path) -> dict[str, Any]:
    """What `save` was given as progress."""
    progress: dict[str, Any] = json.loads((folder / "state.json").read_text())["progress"]
    return progress
