"""Fans job events out: one poller per gateway, however many callers watch."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator

from services.common import logs
from services.common.errors import PeerUnavailable
from services.gateway.jobs import records
from services.gateway.jobs.records import FINAL, Event
from services.gateway.store import Store

_POLL_S = 0.1
_log = logs.get(__name__)


class Feed:
    """Events of jobs, whichever gateway wrote them. Use from one event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._watchers: dict[int, set[asyncio.Queue[Event | None]]] = defaultdict(set)
        self._closed = False
        self._seen: dict[int, int] = {}
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def ring(self) -> None:
        """Tell that this process has written an event, so that it is seen at once."""
        self._news.set()

    async def follow(self, pk: int, after: int) -> AsyncIterator[Event]:
        """Yield a job's events after sequence number `after`, past ones first, until its last.

        Raises PeerUnavailable where the gateway stops meanwhile; any gateway goes on from there.
        """
        queue: asyncio.Queue[Event | None] = asyncio.Queue()
        self._watch(pk, queue)
        try:
            while True:
                # Sequences have no gaps, so one in what arrives means: read them all.
                for event in await asyncio.to_thread(records.events, self._store, pk, after):
                    after = event.seq
                    yield event
                    if event.state in FINAL:
                        return
                if await self._is_over(pk, after):
                    return
                event = await self._next(queue)
                while event.seq <= after + 1:
                    if event.seq == after + 1:
                        after = event.seq
                        yield event
                        if event.state in FINAL:
                            return
                    event = await self._next(queue)
        finally:
            self._leave(pk, queue)

    async def close(self) -> None:
        """Stop polling and send all followers away."""
        self._closed = True
        for queues in self._watchers.values():
            for queue in queues:
                queue.put_nowait(None)
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _next(self, queue: asyncio.Queue[Event | None]) -> Event:
        event = None if self._closed else await queue.get()
        if event is None:
            raise PeerUnavailable("the gateway is shutting down; watch again")
        return event

    async def _is_over(self, pk: int, after: int) -> bool:
        """Whether the job has ended at or before `after`: nothing will come any more."""
        last = await asyncio.to_thread(records.last_event, self._store, pk)
        return last is not None and last.state in FINAL and last.seq <= after

    def _watch(self, pk: int, queue: asyncio.Queue[Event | None]) -> None:
        self._watchers[pk].add(queue)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._poll(), name="job events")

    def _leave(self, pk: int, queue: asyncio.Queue[Event | None]) -> None:
        self._watchers[pk].discard(queue)
        if not self._watchers[pk]:
            del self._watchers[pk]
            self._seen.pop(pk, None)

    async def _poll(self) -> None:
        while self._watchers:
            try:
                await self._deliver()
            except Exception as error:  # a database that is away for a moment
                _log.warning("cannot read job events", reason=str(error)[:200])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_POLL_S):
                    await self._news.wait()
            self._news.clear()

    async def _deliver(self) -> None:
        """One query for all watched jobs, one more for each that has news."""
        heads = await asyncio.to_thread(records.heads, self._store, list(self._watchers))
        for pk, head in heads.items():
            seen = self._seen.get(pk)
            if seen == head:
                continue
            # The first look takes the newest event alone: what is older, followers read themselves.
            start = head - 1 if seen is None else seen
            fresh = await asyncio.to_thread(records.events, self._store, pk, start)
            if pk in self._watchers:
                self._seen[pk] = fresh[-1].seq if fresh else head
            for queue in self._watchers.get(pk, ()):
                for event in fresh:
                    queue.put_nowait(event)
