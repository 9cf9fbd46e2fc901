"""The processes of one training run: which one this is, and what they tell one another.

All ranks do the same work in the same order, each on its share of a step's batch; the first one
alone measures, writes and stores what belongs to the whole run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from services.common.errors import Precondition
from services.common.process import see_one_gpu

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
Ints = npt.NDArray[np.int32]
_PATIENCE = timedelta(days=7)
"""A rank waits for the first one's measurements, however long: whoever supervises them ends all
where one is lost."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of its run."""

    rank: int = 0
    world: int = 1
    device: str = "cpu"

    @property
    def first(self) -> bool:
        """Whether this process speaks for the run."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.world == 1

    def share(self, items: Sequence[T]) -> tuple[Sequence[T], bool]:
        """This rank's items, dealt in turn, and whether they count: a rank without any takes part
        with the first item, so that no other waits for it."""
        own = items[self.rank :: self.world]
        return (own, True) if len(own) else (items[:1], False)

    def total(self, values: Sequence[float]) -> list[float]:
        """Sums over all ranks, float64."""
        if self.alone:
            return list(values)
        import torch
        from torch import distributed as dist

        told = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(told)
        return [float(value) for value in told]

    def mean(self, values: Tensor, part: float) -> Tensor:
        """The mean over ranks of values that count `part` on this one; no gradient."""
        if self.alone:
            return values
        from torch import distributed as dist

        told = values * (part / self.world)
        dist.all_reduce(told)
        return told

    def told(self, arrays: Sequence[Ints]) -> list[Ints]:
        """The first rank's arrays; all ranks give as many."""
        if self.alone:
            return list(arrays)
        import torch
        from torch import distributed as dist

        lengths = torch.tensor([len(one) for one in arrays], device=self.device)
        dist.broadcast(lengths, 0)
        values = np.concatenate([*arrays, np.zeros(0, np.int32)]).astype(np.int32)
        values.resize(int(lengths.sum()))  # on other ranks, a place for the first one's
        flat = torch.from_numpy(values).to(self.device)
        dist.broadcast(flat, 0)
        return np.split(flat.cpu().numpy(), np.cumsum(lengths.cpu().numpy())[:-1])

    def agreed(self, value: float) -> float:
        """The first rank's value, so that all decide alike."""
        return self.total([value if self.first else 0.0])[0]

    def wait(self) -> None:
        """Wait until all ranks are here."""
        if not self.alone:
            from torch import distributed as dist

            dist.barrier()

    def leave(self) -> None:
        """End this process, unless it is the first: what is left to do is not shared."""
        if self.alone:
            return
        from torch import distributed as dist

        self.wait()
        dist.destroy_process_group()
        if not self.first:
            sys.exit(0)


ALONE = Ranks()


def join(rank: int, world: int, meeting: Path, device: str) -> Ranks:
    """Meet the other ranks at a file that none of another run or attempt uses; blocks until all are
    there. Each rank takes the GPU of its number. Raises Precondition without so many GPUs.
    """
    device = _own_gpu(rank, world, device)
    if world == 1:
        return Ranks(device=device)
    from torch import distributed as dist

    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # ranks of a run are on one machine
    store = dist.FileStore(str(meeting), world)  # type: ignore[attr-defined]
    store.set_timeout(_PATIENCE)
    dist.init_process_group(
        "gloo" if device == "cpu" else "nccl",
        store=store,
        rank=rank,
        world_size=world,
        timeout=_PATIENCE,
    )
    ranks = Ranks(rank, world, device)
    ranks.wait()  # NCCL connects at the first collective
    return ranks


def _own_gpu(rank: int, world: int, device: str) -> str:
    """The device of a rank, in this process the only GPU there is."""
    kind, _, number = device.partition(":")
    if kind == "cpu" or (world == 1 and not number):
        return device
    import torch

    wanted, found = rank if world > 1 else int(number), torch.cuda.device_count()
    if found < max(world, wanted + 1):
        raise Precondition(
            f"STUDENT_PROCESSES is {world} on {device}, and there are {found} GPUs",
            differences={"gpus": f"{found} found"},
        )
    see_one_gpu(wanted)
    return f"{kind}:0"
