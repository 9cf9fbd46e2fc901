"""What a gateway does by the clock for projects: deletions at once, retention every hour. Of
several gateways on one database one does it at a time."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from services.common import logs
from services.gateway.projects.deletion import Deletions
from services.gateway.projects.retention import Keeping
from services.gateway.store import Store

_LOCK = 7102
_log = logs.get(__name__)


class Chores:
    """Runs until it is stopped."""

    def __init__(
        self,
        store: Store,
        deletions: Deletions,
        keeping: Keeping,
        *,
        every_s: float = 2.0,
        keep_every_s: float = 3600.0,
    ) -> None:
        self._store, self._deletions, self._keeping = store, deletions, keeping
        self._every_s, self._keep_every_s = every_s, keep_every_s
        self._kept_s = -keep_every_s
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, with what an earlier process left."""
        self._task = asyncio.create_task(self._work(), name="chores")

    def wake(self) -> None:
        """Look now: there is something to do."""
        self._wake.set()

    async def stop(self) -> None:
        """Stop; what is half done goes on at the next start, or at another gateway."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _work(self) -> None:
        while True:
            await self._try("deletions", self._deletions.work)
            if time.monotonic() - self._kept_s >= self._keep_every_s:
                self._kept_s = time.monotonic()
                await self._try("retention", self._keeping.work)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._every_s):
                    await self._wake.wait()
            self._wake.clear()

    async def _try(self, what: str, work: Callable[[], Awaitable[object]]) -> None:
        try:
            async with self._alone() as is_ours:
                if is_ours:
                    await work()
        except Exception as error:  # a service or the database is away for a moment
            _log.warning(f"{what} wait", reason=str(error)[:300])

    @contextlib.asynccontextmanager
    async def _alone(self) -> AsyncIterator[bool]:
        """Yield whether this gateway alone works now. What talks to the database is in threads,
        and what was taken is given back even where this is cancelled meanwhile."""
        held = contextlib.ExitStack()
        locked = self._store.alone(_LOCK)
        taking = asyncio.ensure_future(asyncio.to_thread(held.enter_context, locked))

        async def give_back() -> None:
            await asyncio.wait([taking])
            await asyncio.to_thread(held.close)

        try:
            yield await asyncio.shield(taking)
        finally:
            await asyncio.shield(give_back())
