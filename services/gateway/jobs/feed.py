"""Fans job events out: at once where this gateway wrote them, by one poller where another did."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence

from services.common import logs
from services.common.errors import PeerUnavailable
from services.gateway.gathering import Gathered
from services.gateway.jobs import records
from services.gateway.jobs.records import FINAL, Event
from services.gateway.store import Store

_POLL_S = 0.1
"""Between looks for events of other gateways."""
_ALONE_POLL_S = 1.0
"""The same where no other gateway can write: what this one writes it tells itself."""
_AT_ONCE = 64
"""Jobs whose events are read together."""
_log = logs.get(__name__)


class Feed:
    """Events of jobs, whichever gateway wrote them. Use from one event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._past = Gathered(functools.partial(records.events_of, store))
        self._poll_s = _POLL_S if store.is_shared else _ALONE_POLL_S
        self._watchers: dict[int, set[asyncio.Queue[Event | None]]] = defaultdict(set)
        self._closed = False
        self._seen: dict[int, int] = {}
        """Up to where every watcher of a job has its events, or has them in its queue."""
        self._news = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def tell(self, pk: int, event: Event) -> None:
        """Hand on an event of a job that this process has written; its watchers get it at once."""
        self._hand_on(pk, [event])

    def ring(self) -> None:
        """Look for events now, without waiting for the next turn."""
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
                missed = await self._past.get((pk, after)) or []
                for event in missed:
                    after = event.seq
                    yield event
                    if event.state in FINAL:
                        return
                if not missed and await self._is_over(pk, after):
                    return
                self._seen[pk] = min(self._seen.get(pk, after), after)
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
                async with asyncio.timeout(self._poll_s):
                    await self._news.wait()
            self._news.clear()

    async def _deliver(self) -> None:
        """Read what other gateways have written: one query for all watched jobs, then the news."""
        heads = await asyncio.to_thread(records.heads, self._store, list(self._watchers))
        behind = [(pk, self._seen[pk]) for pk, head in heads.items() if self._is_behind(pk, head)]
        for at in range(0, len(behind), _AT_ONCE):
            part = behind[at : at + _AT_ONCE]
            news = await asyncio.to_thread(records.events_of, self._store, part)
            for (pk, _), fresh in news.items():
                self._hand_on(pk, fresh)

    def _is_behind(self, pk: int, head: int) -> bool:
        """Whether some watcher lacks events; one that has read nothing yet reads by itself."""
        return self._seen.get(pk, head) < head

    def _hand_on(self, pk: int, fresh: Sequence[Event]) -> None:
        """Give events to those who watch; what they have already they pass over."""
        queues = self._watchers.get(pk)
        if not queues or not fresh:
            return
        # After a gap the mark stays: two writers of this process may tell in another order.
        seen = self._seen.get(pk)
        if seen is not None and fresh[0].seq <= seen + 1:
            self._seen[pk] = max(seen, fresh[-1].seq)
        for queue in queues:
            for event in fresh:
                queue.put_nowait(event)
