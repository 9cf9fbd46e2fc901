"""How far a job is: stages, speed and time left, told as events in the words of the domain."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from services.gateway.jobs import records
from services.gateway.jobs.feed import Feed
from services.gateway.store import Store

_ORDER = (
    "ingest",
    "check",
    "estimate",
    "features",
    "teacher_outputs",
    "teacher_views",
    "regions",
    "concepts",
    "correct",
    "importance",
    "targets",
    "answers",
    "rounds",
    "review",
    "rank",
    "fit",
    "publish",
)
"""Stages as people read them; those that run side by side may start in either order."""
_TIMED_UNITS = ("images", "records", "answers")
"""Units of equal cost, from which a speed follows; the steps of a fit are where it says so."""
_EVENT_S = 0.5
"""Shortest time between two events that only move a counter."""


@dataclass
class Stage:
    """One stage of a job, as `JobStage` shows it."""

    stage: str
    done: int = 0
    total: int = 0
    unit: str = ""
    elapsed_s: float = 0.0
    cache_hits: int = 0
    complete: bool = False


@dataclass
class _Clock:
    """Speed of a running stage: what was found in a cache is not counted as work."""

    started_s: float
    before_s: float
    """Seconds that earlier attempts at this stage took."""
    counted_s: float = 0.0
    """When the first even unit was counted; 0 where there is none."""
    before: int = 0
    """Even units that were done when it began to count them: by earlier attempts, or while what
    comes before the first unit went on."""


class Progress:
    """The stages of one running job. Use from one event loop; events keep their order."""

    def __init__(
        self, store: Store, feed: Feed, pk: int, stages: list[dict[str, Any]], *, run: int = 0
    ) -> None:
        self._store, self._feed, self._pk, self._run = store, feed, pk, run
        self._stages = {one["stage"]: Stage(**one) for one in stages}
        self._clocks: dict[str, _Clock] = {}
        self._expected_s: dict[str, float] = {}
        self._even: set[str] = set()
        self._sent_s = 0.0
        self._lock = asyncio.Lock()

    def expect(self, seconds: dict[str, float]) -> None:
        """Set how long stages are expected to take, for the time left."""
        self._expected_s |= seconds

    async def begin(self, name: str) -> None:
        """Start a stage, or start it again after a gateway was killed in it."""
        before_s = self._stages[name].elapsed_s if name in self._stages else 0.0
        self._stages[name] = Stage(name, elapsed_s=before_s)
        self._even.discard(name)
        self._clocks[name] = _Clock(time.monotonic(), before_s)
        await self.say(f"{name}: started")

    async def update(
        self,
        name: str,
        *,
        done: int,
        total: int,
        unit: str,
        cache_hits: int = 0,
        detail: str = "",
        curve: records.Curve | None = None,
        even: bool = False,
    ) -> None:
        """Set a stage's counters; an event follows unless one was sent just before.

        `even` says that its units take equally long, whatever they are. New points of a learning
        curve are always sent.
        """
        stage = self._stages[name]
        if even and done > 0 and name not in self._even:
            self._even.add(name)
            clock = self._clocks[name]
            self._clocks[name] = replace(clock, counted_s=time.monotonic(), before=done)
        stage.done, stage.total, stage.unit, stage.cache_hits = done, total, unit, cache_hits
        if curve is not None or time.monotonic() - self._sent_s >= _EVENT_S:
            await self._send(lambda: self._sentence(stage, detail), curve=curve)

    async def complete(self, name: str) -> None:
        """End a stage."""
        stage = self._stages[name]
        stage.complete = True
        stage.done = max(stage.done, stage.total)
        self._tick()
        self._clocks.pop(name, None)
        cached = f", {stage.cache_hits:,} from the cache" if stage.cache_hits else ""
        what = f"{stage.done:,} {stage.unit}" if stage.unit else "done"
        await self.say(f"{name}: {what} in {stage.elapsed_s:.1f} s{cached}")

    async def say(self, message: str, **ending: Any) -> None:
        """Add an event with this sentence; `ending` as `records.append` takes it."""
        await self._send(lambda: message, **ending)

    def left_s(self) -> float:
        """Estimated seconds left: running stages side by side, then those to come."""
        running = [self._stage_left_s(self._stages[name]) for name in self._clocks]
        waiting = [s for name, s in self._expected_s.items() if name not in self._stages]
        return max(running, default=0.0) + sum(waiting)

    def _stage_left_s(self, stage: Stage) -> float:
        rate = self._rate(stage)
        if rate <= 0:
            return max(self._expected_s.get(stage.stage, 0.0) - stage.elapsed_s, 0.0)
        return (stage.total - stage.done) / rate

    def _rate(self, stage: Stage) -> float:
        clock = self._clocks.get(stage.stage)
        timed = stage.unit in _TIMED_UNITS or stage.stage in self._even
        if clock is None or not timed:
            return 0.0
        worked = stage.done - stage.cache_hits - clock.before
        since_s = clock.counted_s or clock.started_s
        return worked / max(time.monotonic() - since_s, 1e-3) if worked > 0 else 0.0

    def _sentence(self, stage: Stage, detail: str) -> str:
        of = f" of {stage.total:,}" if stage.total else ""
        parts = [f"{stage.stage}: {stage.done:,}{of} {stage.unit}".rstrip()]
        if detail:
            parts.append(detail)
        rate = self._rate(stage)
        if rate > 0:
            parts.append(f"{_speed(rate)} {stage.unit}/s")
        if rate > 0 and stage.done < stage.total:
            parts.append(f"{self._stage_left_s(stage):.0f} s left")
        return ", ".join(parts)

    def _tick(self) -> None:
        for name, clock in self._clocks.items():
            spent_s = time.monotonic() - clock.started_s
            self._stages[name].elapsed_s = round(clock.before_s + spent_s, 3)

    async def _send(self, message: Callable[[], str], **ending: Any) -> None:
        self._sent_s = time.monotonic()
        self._tick()
        async with self._lock:
            stages = [asdict(self._stages[name]) for name in _ORDER if name in self._stages]
            event = await asyncio.to_thread(
                records.append,
                self._store,
                self._pk,
                message(),
                stages=stages,
                eta_s=0.0 if "state" in ending and ending["state"] != "RUNNING" else self.left_s(),
                run=self._run,
                **ending,
            )
            if event is not None:
                self._feed.tell(self._pk, event)


def _speed(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 10 else f"{rate:.2g}"
