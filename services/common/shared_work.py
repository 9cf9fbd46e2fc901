"""Work that several callers wait for: done once, and to its end even where all of them leave.

What runs in a thread cannot be stopped. If a load ended with the caller who began it, its thread
would go on for nobody, and callers who lose patience and come again would pile up copies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
Work = Callable[[], Coroutine[Any, Any, None]]


class SharedWork(Generic[K]):
    """Work in progress by key. Use from one event loop."""

    def __init__(self) -> None:
        self._tasks: dict[K, asyncio.Task[None]] = {}

    def __contains__(self, key: K) -> bool:
        """Whether the work of a key is in progress."""
        return key in self._tasks

    async def done(self, key: K, work: Work) -> None:
        """Wait until the work of a key is done; begin it where it is not in progress.

        Raises for all who wait what the work raises.
        """
        task = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = asyncio.create_task(self._do(key, work))
            # Where nobody waits any more, asyncio would complain that nobody took its error.
            task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        await asyncio.shield(task)

    async def close(self) -> None:
        """Cancel all that is in progress."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks.clear()

    async def _do(self, key: K, work: Work) -> None:
        try:
            await work()
        finally:
            # Here, not once the task has ended: who comes in between would wait for nothing.
            self._tasks.pop(key, None)
