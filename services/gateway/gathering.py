"""Look-ups that are made together: those that come while one read runs share the next one.

A session, its transaction and the hop to a thread and back cost more than reading a row. Under
load one read answers many callers; a caller that is alone waits for nobody. Callers that ask one
thing after the other come back together, so a crowd waits a moment until it is complete again:
without that each read would answer the first to come back, and no other. No read is joined after
it has begun, so every caller sees all that was written before it asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
_AT_MOST = 64
"""Keys of one read, so that a crowd's first callers do not wait for its last."""
_PAUSE_S = 0.01
"""How long a crowd is waited for."""


class Gathered(Generic[K, V]):
    """Reads values by key, many at a time. Use from one event loop.

    `load` blocks and runs in a thread; a key that it does not return has no value.
    """

    def __init__(self, load: Callable[[Sequence[K]], Mapping[K, V]]) -> None:
        self._load = load
        self._waiting: dict[K, list[asyncio.Future[V | None]]] = {}
        self._task: asyncio.Task[None] | None = None
        self._count = self._crowd = 0
        self._complete = asyncio.Event()

    async def get(self, key: K) -> V | None:
        """Return the value of a key, None where it has none. Raises what `load` raises."""
        future: asyncio.Future[V | None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, []).append(future)
        self._count += 1
        if self._count >= self._crowd:
            self._complete.set()
        if self._task is None:
            self._task = asyncio.create_task(self._work(), name="gathered reads")
        return await future

    async def _work(self) -> None:
        try:
            while self._waiting:
                await self._gather()
                await self._read([*self._waiting][:_AT_MOST])
        finally:
            self._task = None

    async def _gather(self) -> None:
        """Wait until as many callers ask as did together before, or for a moment."""
        if self._count >= self._crowd:
            return
        self._complete.clear()
        try:
            async with asyncio.timeout(_PAUSE_S):
                await self._complete.wait()
        except TimeoutError:
            self._crowd = self._count

    async def _read(self, keys: Sequence[K]) -> None:
        asked = {key: self._waiting.pop(key) for key in keys}
        answered = sum(map(len, asked.values()))
        self._count -= answered
        try:
            found = await asyncio.to_thread(self._load, keys)
            self._crowd = min(max(self._crowd, answered + self._count), _AT_MOST)
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
