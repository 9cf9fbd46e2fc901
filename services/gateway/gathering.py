"""Look-ups that are made together: those that come while one read runs share the next one.

A session, its transaction and the hop to a thread and back cost more than reading a row. Under
load one read answers many callers; a caller that is alone waits for nobody. Callers that ask one
thing after the other come back together, so a crowd waits a moment until it is complete again:
without that each read would answer the first to come back, and no other. No read is joined after
it has begun, so every caller sees all that was written before it asked.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
_Load = Callable[[Sequence[Any]], Mapping[Any, Any]]
_Wanted = tuple[_Load, Hashable]
_AT_MOST = 64
"""Keys of one read, so that a crowd's first callers do not wait for its last."""
_PAUSE_S, _MOST_S = 0.005, 0.05
"""How long a crowd is waited for while nobody joins it, and how long in all."""


class Crowd:
    """Callers that read together, also of several kinds: one hop to a thread is for all of them.
    Use from one event loop."""

    def __init__(self) -> None:
        self._waiting: dict[_Wanted, list[asyncio.Future[Any]]] = {}
        self._task: asyncio.Task[None] | None = None
        self._count = self._crowd = 0
        self._complete = asyncio.Event()

    async def get(self, load: _Load, key: Hashable) -> Any:
        """Return what `load` has under a key, else None. Raises what `load` raises."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault((load, key), []).append(future)
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
                await self._read(list(itertools.islice(self._waiting, _AT_MOST)))
        finally:
            self._task = None

    async def _gather(self) -> None:
        """Wait until as many callers ask as did together before, or until no more of them come."""
        until_s = time.monotonic() + _MOST_S
        while self._count < self._crowd:
            before = self._count
            self._complete.clear()
            try:
                async with asyncio.timeout(_PAUSE_S):
                    await self._complete.wait()
            except TimeoutError:
                if self._count == before or time.monotonic() > until_s:
                    self._crowd = self._count

    async def _read(self, wanted: Sequence[_Wanted]) -> None:
        asked = {one: self._waiting.pop(one) for one in wanted}
        answered = sum(map(len, asked.values()))
        self._count -= answered
        results: Mapping[_Load, Mapping[Any, Any] | Exception]
        try:
            results = await asyncio.to_thread(_load_all, wanted)
        except Exception as error:  # no thread any more: nobody may wait for ever
            results = {load: error for load, _ in wanted}
        self._crowd = min(max(self._crowd, answered + self._count), _AT_MOST)
        for (load, key), futures in asked.items():
            found = results[load]
            for future in futures:
                if future.done():  # its caller has left
                    continue
                if isinstance(found, Exception):
                    future.set_exception(found)
                else:
                    future.set_result(found.get(key))


class Gathered(Generic[K, V]):
    """Reads values by key, many at a time. Use from one event loop.

    `load` blocks and runs in a thread; a key that it does not return has no value. `crowd` are
    those who read together, by default all callers of this object.
    """

    def __init__(
        self, load: Callable[[Sequence[K]], Mapping[K, V]], crowd: Crowd | None = None
    ) -> None:
        self._load, self._crowd = load, crowd or Crowd()

    async def get(self, key: K) -> V | None:
        """Return the value of a key, None where it has none. Raises what `load` raises."""
        found: V | None = await self._crowd.get(self._load, key)
        return found


def _load_all(wanted: Iterable[_Wanted]) -> dict[_Load, Mapping[Any, Any] | Exception]:
    """Return, by kind, what was found, or why nothing was."""
    keys: dict[_Load, list[Hashable]] = {}
    for load, key in wanted:
        keys.setdefault(load, []).append(key)
    return {load: _try(load, these) for load, these in keys.items()}


def _try(load: _Load, keys: Sequence[Hashable]) -> Mapping[Any, Any] | Exception:
    try:
        return load(keys)
    except Exception as error:
        return error
