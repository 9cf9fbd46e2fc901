"""Tensors of a sharded training in safetensors files, for any number of ranks to read.

    {stem}.safetensors               written by a process alone: whole tensors
    {stem}.0000-of-0002.safetensors  written by ranks: rows of sharded tensors, in rank order; what
                                     is not sharded is in the first file alone

FSDP2 shards along the first dimension in equal chunks, so that rows joined in rank order are the
tensor again, and another number of ranks reads other rows of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from services.student.ranks import Ranks

Tensors = dict[str, Tensor]


def local(tensor: Tensor) -> Tensor:
    """A tensor's part in this process; all of it where it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor  # type: ignore[no-any-return]


def write(folder: Path, stem: str, tensors: Mapping[str, Tensor], ranks: Ranks) -> None:
    """Write this rank's file."""
    mine = {
        name: local(tensor).detach().cpu().contiguous()
        for name, tensor in tensors.items()
        if ranks.first or isinstance(tensor, DTensor)
    }
    ending = "" if ranks.alone else f".{ranks.rank:04d}-of-{ranks.world:04d}"
    save_file(mine, folder / f"{stem}{ending}.safetensors")


class Slices:
    """The files of a stem. Close it, or use it as a context manager."""

    def __init__(self, folder: Path, stem: str) -> None:
        paths = [folder / f"{stem}.safetensors", *sorted(folder.glob(f"{stem}.*-of-*.safetensors"))]
        self._files: list[Any] = [
            safe_open(path, framework="pt") for path in paths if path.exists()
        ]
        self._names = [set(file.keys()) for file in self._files]

    def __enter__(self) -> Slices:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.clear()

    @property
    def exist(self) -> bool:
        """Whether there is any file."""
        return bool(self._files)

    def names(self) -> list[str]:
        """All tensors."""
        return sorted(set().union(*self._names))

    def whole(self, name: str) -> Tensor:
        """A tensor with all its rows. Raises KeyError."""
        holders = self._holders(name)
        parts = [file.get_tensor(name) for file in holders]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def like(self, name: str, given: Tensor) -> Tensor:
        """A tensor with the rows that `given` has in this process, sharded as it is.

        Raises KeyError.
        """
        if not isinstance(given, DTensor):
            return self.whole(name)
        own = given.to_local()
        start, stop = _rows(given)
        rows = self.between(name, start, stop).to(own.device)
        return DTensor.from_local(  # type: ignore[no-any-return]
            rows,
            given.device_mesh,
            given.placements,
            run_check=False,
            shape=given.shape,
            stride=given.stride(),
        )

    def between(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of a tensor; only those are read. Raises KeyError."""
        parts: list[Tensor] = []
        at = 0
        for file in self._holders(name):
            piece = file.get_slice(name)
            count = piece.get_shape()[0]
            first, last = max(start - at, 0), min(stop - at, count)
            if first < last or not parts:
                parts.append(piece[min(first, count) : max(last, first, 0)])
            at += count
        return torch.cat(parts)

    def _holders(self, name: str) -> list[Any]:
        pairs = zip(self._files, self._names, strict=True)
        found = [file for file, names in pairs if name in names]
        if not found:
            raise KeyError(name)
        return found


def _rows(given: DTensor) -> tuple[int, int]:
    """First row of a sharded tensor in this process, and the one behind the last."""
    mesh, count = given.device_mesh, given.shape[0]
    chunk = -(-count // mesh.size())
    start = min(mesh.get_local_rank() * chunk, count)
    return start, start + given.to_local().shape[0]
