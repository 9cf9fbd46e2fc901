"""A model whose weights, gradients and optimizer state are spread over ranks (FSDP2).

What follows training (measuring, storing) is the first rank's alone, and needs the model without
shards: a copy of its structure, made beforehand without weights, is then filled.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from services.common.errors import Precondition
from services.student.ranks import Ranks


class Shared:
    """A module in training on all ranks of a run; one process alone trains the module itself."""

    def __init__(self, module: Any, ranks: Ranks, blocks: Iterable[nn.Module] = ()) -> None:
        """Shard a module in place, each of its `blocks` on its own, so that only one of them at a
        time is whole. Collective."""
        self.module, self._ranks, self._empty = module, ranks, module
        if ranks.alone:
            return
        _check(module)
        self._empty = _without_weights(module)
        for norm in module.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                norm.forward = functools.partial(_normalise, norm)  # type: ignore[method-assign]
        mesh = init_device_mesh(torch.device(ranks.device).type, (ranks.world,))
        for block in blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(module, mesh=mesh)
        if hasattr(module, "get_base_model"):  # peft's generate goes to the model inside
            register_fsdp_forward_method(module, "generate")

    def whole(self) -> Any:
        """The module with its weights and without shards: on the first rank; on others it is
        empty. Collective."""
        if self._ranks.alone:
            return self.module
        places = {id(old): name for name, old in self._empty.named_parameters()}
        found: dict[str, nn.Parameter] = {}
        for name, weight in self.module.named_parameters():
            full = weight.full_tensor() if isinstance(weight, DTensor) else weight
            if self._ranks.first:
                found[name] = nn.Parameter(full.detach(), requires_grad=weight.requires_grad)
        buffers = dict(self.module.named_buffers(remove_duplicate=False))
        for prefix, part in self._empty.named_modules():
            for key, old in part._parameters.items():
                if old is not None and self._ranks.first:
                    part._parameters[key] = found[places[id(old)]]
            for key, buffer in part._buffers.items():
                if buffer is not None:
                    part._buffers[key] = buffers[f"{prefix}.{key}" if prefix else key]
        return self._empty.train(self.module.training)


def fold(module: nn.Module) -> None:
    """Let go of weights that evaluations have gathered, so that the next forward pass reads the
    shards again."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def _check(module: nn.Module) -> None:
    """Raise Precondition where a weight cannot be dealt in rows."""
    scalars = [name for name, weight in module.named_parameters() if not weight.ndim]
    if scalars:
        raise Precondition(
            f"{scalars[0]} is a scalar, which several processes cannot share; train this network "
            "with STUDENT_PROCESSES=1",
            differences={"weights": f"{len(scalars)} scalars"},
        )


def _without_weights(module: Any) -> Any:
    """A copy of a module on no device, tied weights tied."""
    memo: dict[int, Any] = {
        id(weight): nn.Parameter(
            torch.empty_like(weight, device="meta"), requires_grad=weight.requires_grad
        )
        for weight in module.parameters()
    }
    return copy.deepcopy(module, memo)


def _normalise(norm: Any, given: Tensor) -> Tensor:
    """A batch norm [B, C, ...] by the mean and variance of the batches of all ranks together.

    torch's own SyncBatchNorm knows GPUs alone. timm's norms with an activation have it applied.
    """
    if not norm.training:
        return type(norm).forward(norm, given)  # type: ignore[no-any-return]
    wide, over = given.float(), [0, *range(2, given.ndim)]
    count = torch.tensor([float(wide.numel() // wide.shape[1])], device=wide.device)
    told = _sum(torch.cat([wide.sum(over), count]))
    total, shape = told[-1], [1, -1] + [1] * (given.ndim - 2)
    mean = told[:-1] / total
    apart = wide - mean.view(shape)
    variance = _sum(apart.square().sum(over)) / total
    made = apart * (variance + norm.eps).rsqrt().view(shape)
    if norm.affine:
        made = made * norm.weight.view(shape) + norm.bias.view(shape)
    _note(norm, mean.detach(), (variance * total / (total - 1)).detach())
    made = made.to(given.dtype)
    return norm.act(norm.drop(made)) if hasattr(norm, "act") else made  # type: ignore[no-any-return]


class _Sum(torch.autograd.Function):
    """The sum over ranks; what one rank's loss owes to it, it owes to all ranks' values."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        summed = values.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return _Sum.forward(ctx, gradient)


def _sum(values: Tensor) -> Tensor:
    return _Sum.apply(values)  # type: ignore[no-any-return, no-untyped-call]


@torch.no_grad()
def _note(norm: Any, mean: Tensor, variance: Tensor) -> None:
    """Move the running means of a norm, as torch's batch norm does."""
    if not norm.track_running_stats:
        return
    norm.num_batches_tracked.add_(1)
    share = norm.momentum
    if share is None:
        share = 1.0 / float(norm.num_batches_tracked)
    norm.running_mean.lerp_(mean, share)
    norm.running_var.lerp_(variance, share)
