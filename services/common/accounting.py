"""What device work is noted as: metrics of its queue, its cost by project, spans of its callers."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeVar

from stillhouse.common.v1 import items_pb2

from services.common import callers, metrics, tracing
from services.common.callers import Caller
from services.common.tracing import Trace

R = TypeVar("R")
_TRAINING = "training"
_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class Ticket:
    """Whose an item in a queue is, and since when it waits; made where the item comes in."""

    queued_s: float = field(default_factory=time.perf_counter)
    caller: Caller = field(default_factory=callers.current)
    trace: Trace | None = field(default_factory=tracing.here)


@dataclass(frozen=True, slots=True)
class Share:
    """What one entry of a queue had of a batch; `weight` is its part of the cost, in any unit."""

    ticket: Ticket
    items: int
    weight: float


@dataclass
class Tally:
    """What a call's work beside the queues has spent so far."""

    queue_s: float = 0.0
    compute_s: float = 0.0
    batch_size: int = 0

    def add(self, queue_s: float, compute_s: float, items: int) -> None:
        """Add a piece of work."""
        self.queue_s += queue_s
        self.compute_s += compute_s
        self.batch_size = max(self.batch_size, items)

    def timings(self, preprocess_ms: float = 0.0) -> items_pb2.Timings:
        """Return it as responses carry it."""
        return items_pb2.Timings(
            queue_ms=self.queue_s * 1000,
            preprocess_ms=preprocess_ms,
            compute_ms=self.compute_s * 1000,
            batch_size=self.batch_size,
        )


def note_batch(
    model: str, shares: Sequence[Share], *, started_s: float, compute_s: float, device: str = ""
) -> None:
    """Note a forward pass that began at `started_s`, by the clock of `time.perf_counter`. Without a
    `device` it ran on the service's."""
    size = sum(share.items for share in shares)
    metrics.BATCH_ITEMS.labels(model).observe(size)
    metrics.COMPUTE_SECONDS.labels(model).observe(compute_s)
    waited = metrics.QUEUE_SECONDS.labels(model)
    for share in shares:
        waited.observe(max(started_s - share.ticket.queued_s, 0.0))
    for (project, work), part in _parts(shares).items():
        metrics.charge(project, part * compute_s, work=work, device=device)
    for ticket in _traced(shares):
        _record(model, ticket, size, started_s, started_s + compute_s)


def noted(
    work: Callable[[], R],
    model: str,
    *,
    items: int = 1,
    tally: Tally | None = None,
    traced: bool = True,
    device: str = "",
) -> Callable[[], R]:
    """Return `work` for a thread that computes beside the queues: noted as a batch of its own for
    this task's caller, whose ids its log lines have.

    `tally` adds up a call; `traced` gives a span; without a `device` it is the service's.
    """
    ticket, sums = Ticket(), tally or Tally()
    shown = ticket if traced else Ticket(ticket.queued_s, ticket.caller, None)

    def run() -> R:
        started_s = time.perf_counter()
        try:
            return work()
        finally:
            spent_s = time.perf_counter() - started_s
            sums.add(started_s - ticket.queued_s, spent_s, items)
            share = Share(shown, items, 1.0)
            note_batch(model, [share], started_s=started_s, compute_s=spent_s, device=device)

    return functools.partial(contextvars.copy_context().run, run)


@asynccontextmanager
async def training(project: str, *, devices: int = 1) -> AsyncIterator[None]:
    """Count device seconds for a project's training run while the block runs."""
    task = asyncio.create_task(_charge(project, devices))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _charge(project: str, devices: int) -> None:
    """Charge now and then, so that a run of hours shows while it runs."""
    before_s = time.perf_counter()
    try:
        while True:
            await asyncio.sleep(_EVERY_S)
            now_s = time.perf_counter()
            metrics.charge(project, devices * (now_s - before_s), work=_TRAINING)
            before_s = now_s
    finally:
        metrics.charge(project, devices * (time.perf_counter() - before_s), work=_TRAINING)


def _parts(shares: Sequence[Share]) -> dict[tuple[str, str], float]:
    """Return the part of a batch by project and kind of work; the parts add up to 1."""
    total = sum(share.weight for share in shares) or 1.0
    parts: dict[tuple[str, str], float] = {}
    for share in shares:
        caller = share.ticket.caller
        key = caller.project, "job" if caller.job_id else "online"
        parts[key] = parts.get(key, 0.0) + share.weight / total
    return parts


def _traced(shares: Sequence[Share]) -> list[Ticket]:
    """Return the first ticket of every call that is traced."""
    found: dict[int, Ticket] = {}
    for share in shares:
        if share.ticket.trace is not None:
            found.setdefault(id(share.ticket.trace), share.ticket)
    return list(found.values())


def _record(model: str, ticket: Ticket, size: int, started_s: float, ended_s: float) -> None:
    about: tracing.Attributes = {"stillhouse.model": model, "stillhouse.batch_size": size}
    tracing.record("queue", ticket.trace, ticket.queued_s, started_s, about)
    tracing.record("compute", ticket.trace, started_s, ended_s, about)
