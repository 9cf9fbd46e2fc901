"""Keys and values of a batch that is being written: memory taken once, rows given up as they
end.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer


class _Layer(DynamicLayer):  # type: ignore[misc, no-untyped-call]
    """One layer's keys and values, [rows, heads, capacity, d], written in place."""

    def __init__(self, capacity: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._capacity, self._length = capacity, 0
        self._buffers: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write what is new behind what is there; returns views of all of it."""
        if self._buffers is None:
            self.lazy_initialization(key_states, value_states)
            self._buffers = tuple(
                torch.empty(
                    (*new.shape[:2], self._capacity, new.shape[3]),
                    dtype=new.dtype,
                    device=new.device,
                )
                for new in (key_states, value_states)
            )  # type: ignore[assignment]
        assert self._buffers is not None
        end = self._length + key_states.shape[2]
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, self._length : end] = new
        self._length = end
        self.keys, self.values = (buffer[:, :, :end] for buffer in self._buffers)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """Tokens that are there."""
        return self._length

    def keep(self, rows: Tensor) -> None:
        """Give up all rows but these."""
        assert self._buffers is not None
        self._buffers = tuple(buffer[rows] for buffer in self._buffers)  # type: ignore[assignment]


class WrittenCache(Cache):  # type: ignore[misc]
    """A cache of transformers for `capacity` tokens a row."""

    def __init__(self, layers: int, capacity: int) -> None:
        super().__init__(layers=[_Layer(capacity) for _ in range(layers)])

    def keep(self, rows: Tensor) -> None:
        """Give up all rows but these; `rows` int64 [kept]."""
        for layer in self.layers:
            layer.keep(rows)  # type: ignore[union-attr]
