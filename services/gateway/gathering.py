"""Look-ups that are made together: those that come while one read runs share the next one.

A session, its transaction and the hop to a thread and back cost more than reading a row. Under
load one read answers many callers; a caller that is alone waits for nobody. No read is joined
after it has begun, so every caller sees all that was written before it asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
_AT_MOST = 64
"""Keys of one read, so that a crowd's first callers do not wait for its last."""


class Gathered(Generic[K, V]):
    """Reads values by key, many at a time. Use from one event loop.

    `load` blocks and runs in a thread; a key that it does not return has no value.
    """

    def __init__(self, load: Callable[[Sequence[K]], Mapping[K, V]]) -> None:
        self._load = load
        self._waiting: dict[K, list[asyncio.Future[V | None]]] = {}
        self._task: asyncio.Task[None] | None = None

    async def get(self, key: K) -> V | None:
        """Return the value of a key, None where it has none. Raises what `load` raises."""
        future: asyncio.Future[V | None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, []).append(future)
        if self._task is None:
            self._task = asyncio.create_task(self._work(), name="gathered reads")
        return await future

    async def _work(self) -> None:
        try:
            while self._waiting:
                await self._read([*self._waiting][:_AT_MOST])
        finally:
            self._task = None

    async def _read(self, keys: Sequence[K]) -> None:
        asked = {key: self._waiting.pop(key) for key in keys}
        try:
            found = await asyncio.to_thread(self._load, keys)
        except Exception as error:
            for future in _open(asked):
                future.set_exception(error)
            return
        for key, futures in asked.items():
            for future in futures:
                if not future.done():
                    future.set_result(found.get(key))


def _open(asked: dict[K, list[asyncio.Future[V | None]]]) -> list[asyncio.Future[V | None]]:
    """Return the futures of callers that have not left."""
    return [future for futures in asked.values() for future in futures if not future.done()]
