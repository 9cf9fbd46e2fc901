"""Where image networks run, in which type, and how images become a batch there.

Images wait as the 8-bit squares that preprocessing makes: a quarter of the memory, and on a GPU a
quarter of the way. They are normalised in the batch, which has the channels-last order that the
squares already have, so that a pixel is copied once.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from services.common.errors import InvalidInput
from services.common.settings import ModelSettings
from services.common.tensors import Array
from services.torch_common.preprocess import Preprocessing

F = TypeVar("F", bound=Callable[..., Any])

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_TENSOR_CORES = (7, 0)
_streams = threading.local()


@dataclass(frozen=True)
class Compute:
    """A device, the type that networks compute in there, and whether they are compiled."""

    device: str = "cpu"
    precision: str = "float32"
    """A key of DTYPES."""
    compile_mode: str = ""
    """A mode of torch.compile; empty runs networks as they are."""
    jpeg_draft: bool = False
    """Large JPEGs are decoded at reduced size."""

    @classmethod
    def of(cls, settings: ModelSettings) -> Compute:
        """The choice of a service; an empty precision means the device's own."""
        return cls(
            settings.device,
            settings.image_precision or default_precision(settings.device),
            settings.compile_mode,
            settings.jpeg_draft,
        )

    def reads(self, preprocessing: Preprocessing) -> Preprocessing:
        """A model's preprocessing as images are read here."""
        return dataclasses.replace(preprocessing, jpeg_draft=self.jpeg_draft)

    @property
    def identity(self) -> tuple[str, ...]:
        """What a digest of results must hold beside weights and preprocessing.

        Empty for float32, whose results differ between devices and modes in their last bits alone.
        """
        return () if self.precision == "float32" else ("precision", self.precision)

    @property
    def is_cuda(self) -> bool:
        """Whether it is a GPU."""
        return self.device.startswith("cuda")

    @property
    def fixed_shapes(self) -> bool:
        """Whether a new batch shape costs so much that few are used."""
        return bool(self.compile_mode)

    def place(self, network: nn.Module, *, channels_last: bool = True) -> nn.Module:
        """A network on the device, in its type.

        Measured for EfficientNet-lite0 on a CPU: channels last is 1.5 times the speed of the
        default order; on a GPU it is what half-precision convolutions want.
        """
        network.to(device=self.device, dtype=DTYPES[self.precision])
        if channels_last:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network

    def move(self, batch: Tensor) -> Tensor:
        """A batch on the device, in the networks' type; the same where it is so already."""
        return batch.to(device=self.device, dtype=DTYPES[self.precision])

    def compiled(self, function: F) -> F:
        """The function, compiled where that is wanted."""
        if not self.compile_mode:
            return function
        return cast("F", torch.compile(function, mode=self.compile_mode, dynamic=False))

    def stage(self, square: Tensor) -> Tensor:
        """A square uint8 [S, S, 3], on a GPU copied there from pinned memory beside the forward
        passes. Called by the threads that decode, each of which has a stream of its own."""
        if not self.is_cuda:
            return square
        stream = _copy_stream(self.device)
        with torch.cuda.stream(stream):
            staged = square.pin_memory().to(self.device, non_blocking=True)
        # Once this returns the copy is there, so that forward passes wait for no event of ours.
        stream.synchronize()
        return staged

    def batch(self, items: Sequence[Tensor], size: int, preprocessing: Preprocessing) -> Tensor:
        """The normalised images as [size, 3, S, S] in channels-last order; the rest is zeros.

        An item is uint8 [S, S, 3], or fp32 [3, S, S] that is normalised already. Raises
        InvalidInput where there are more items than `size`, none, or one of another shape.
        """
        edge = preprocessing.size_px
        if not 1 <= len(items) <= size:
            raise InvalidInput(f"{len(items)} images do not fit a batch of {size}")
        for item in items:
            _check(item, edge)
        if self.is_cuda and all(item.dtype == torch.uint8 for item in items):
            batch = torch.zeros((size, edge, edge, 3), device=self.device)
            _normalise(batch[: len(items)].copy_(torch.stack(list(items))), preprocessing)
        else:
            batch = torch.from_numpy(_filled(items, size, preprocessing))
        return self.move(batch.permute(0, 3, 1, 2))

    def lanes(self, threads: int) -> int:
        """How many parts of a pass may run side by side where `threads` compute.

        On a GPU, or where each shape is compiled, a pass runs whole.
        """
        return 1 if self.is_cuda or self.fixed_shapes else threads

    def shape_of(self, count: int, limit: int) -> int:
        """The batch shape that `count` images run at: few different ones where a new one is dear.

        `limit` is the largest batch that is asked for.
        """
        if not self.fixed_shapes:
            return count
        return max(count, min(1 << (count - 1).bit_length(), limit))

    def warm_shapes(self, *limits: int) -> list[int]:
        """Batch shapes to run once at load, smallest first, so that no caller waits for set-up.

        On a CPU a new shape costs nothing to speak of. `limits` are the largest batches of calls
        and of shards.
        """
        if not (self.is_cuda or self.fixed_shapes):
            return [1]
        largest = max(limits)
        powers = {self.shape_of(1 << bit, largest) for bit in range(largest.bit_length())}
        return sorted({one for one in powers if one <= largest} | set(limits))

    def forget(self) -> None:
        """Give the memory of models that were put away back to the device."""
        if self.is_cuda:
            torch.cuda.empty_cache()


def default_precision(device: str) -> str:
    """float16 on a GPU with tensor cores, float32 elsewhere.

    float16 has eight times the resolution of bfloat16, and embeddings are float16 in the end. On a
    CPU it would be slower, and results made before would not be found again.
    """
    if device.startswith("cuda") and torch.cuda.is_available():
        return "float16" if torch.cuda.get_device_capability(device) >= _TENSOR_CORES else "float32"
    return "float32"


def size_of(network: nn.Module) -> int:
    """Bytes of a network's parameters and buffers, shared ones once."""
    storages = [one.untyped_storage() for one in (*network.parameters(), *network.buffers())]
    return sum({one.data_ptr(): one.nbytes() for one in storages}.values())


def _check(item: Tensor, edge: int) -> None:
    shape = (edge, edge, 3) if item.dtype == torch.uint8 else (3, edge, edge)
    if tuple(item.shape) != shape or item.dtype not in (torch.uint8, torch.float32):
        raise InvalidInput(
            f"the model takes uint8 [{edge}, {edge}, 3] or fp32 [3, {edge}, {edge}], "
            f"not {item.dtype} {list(item.shape)}"
        )


def _filled(items: Sequence[Tensor], size: int, preprocessing: Preprocessing) -> Array:
    """The normalised images as float32 [size, S, S, 3], with the bits of `Preprocessing.normalise`.

    In numpy, one image after the other: an image stays in the processor's cache through all steps,
    and one thread needs a third of the time in which torch wakes a second for each of them.
    """
    edge = preprocessing.size_px
    # Constants as long as a row of pixels: over three numbers the innermost loop is not vectorised.
    mean = np.tile(np.asarray(preprocessing.mean, np.float32), edge)
    std = np.tile(np.asarray(preprocessing.std, np.float32), edge)
    batch = np.empty((size, edge, edge * 3), np.float32)
    for row, item in zip(batch, items, strict=False):
        pixels = item.cpu().numpy()
        if item.dtype == torch.uint8:
            np.divide(pixels.reshape(row.shape), np.float32(255), out=row, dtype=np.float32)
            row -= mean
            row /= std
        else:
            row[:] = pixels.transpose(1, 2, 0).reshape(row.shape)
    batch[len(items) :] = 0
    return batch.reshape(size, edge, edge, 3)


def _normalise(rows: Tensor, preprocessing: Preprocessing) -> None:
    """The same in place for [n, S, S, 3] of 0 to 255, on a GPU."""
    edge = rows.shape[-2]
    mean = torch.tensor(preprocessing.mean, device=rows.device).repeat(edge)
    std = torch.tensor(preprocessing.std, device=rows.device).repeat(edge)
    rows.flatten(-2).div_(255).sub_(mean).div_(std)


def _copy_stream(device: str) -> torch.cuda.Stream:
    """This thread's stream for copies to a device."""
    found: dict[str, torch.cuda.Stream] = _streams.__dict__.setdefault("by_device", {})
    if device not in found:
        found[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return found[device]
