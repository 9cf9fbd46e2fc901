"""Signs of life of the gateways that share a database: a survivor takes over a dead one's jobs.

Every gateway writes the time into its row, by the database's clock where it has one: theirs may
jump. One that has been silent for long is dead; whoever gets
the database's lock first recovers its workflows and forgets it. Recovering twice, or recovering a
gateway that was only slow, does no harm: stages find what exists.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

from sqlalchemy import Double, String, select, text
from sqlalchemy.orm import Mapped, Session, mapped_column

from services.common import logs
from services.gateway.store import Base, Store

_SILENT_BEATS = 6
_LOCK = 7101
_log = logs.get(__name__)


class GatewayRow(Base):
    """A gateway process that shares this database."""

    __tablename__ = "gateways"

    executor_id: Mapped[str] = mapped_column(String(128), primary_key=True)
    beat: Mapped[float] = mapped_column(Double)


class Heartbeat:
    """Beats for one gateway and looks after the others."""

    def __init__(
        self,
        store: Store,
        executor_id: str,
        recover: Callable[[list[str]], Awaitable[None]],
        *,
        every_s: float,
    ) -> None:
        self._store, self._executor_id = store, executor_id
        self._recover, self._every_s = recover, every_s
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Beat from now on."""
        self._task = asyncio.create_task(self._beat(), name="heartbeat")

    async def stop(self) -> None:
        """Stop beating; the jobs of a gateway that does not come back are taken over."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _beat(self) -> None:
        while True:
            try:
                dead = await asyncio.to_thread(self._look)
                if dead:
                    _log.warning("taking over the jobs of silent gateways", gateways=dead)
                    await self._recover(dead)
                    await asyncio.to_thread(self._forget, dead)
            except Exception as error:  # a database that is away for a moment
                _log.warning("no heartbeat", reason=str(error)[:200])
            await asyncio.sleep(self._every_s)

    def _look(self) -> list[str]:
        """Beat, and return the gateways that have been silent, if this one may recover them."""
        with self._store.write() as session:
            now = _now(session)
            session.merge(GatewayRow(executor_id=self._executor_id, beat=now))
            if session.get_bind().dialect.name == "postgresql":
                locked = session.scalar(text(f"SELECT pg_try_advisory_xact_lock({_LOCK})"))
                if not locked:
                    return []
            silent = now - _SILENT_BEATS * self._every_s
            query = select(GatewayRow.executor_id).where(GatewayRow.beat < silent)
            return list(session.scalars(query))

    def _forget(self, dead: list[str]) -> None:
        with self._store.write() as session:
            silent = _now(session) - _SILENT_BEATS * self._every_s
            for executor_id in dead:
                row = session.get(GatewayRow, executor_id)
                if row is not None and row.beat < silent:
                    session.delete(row)


def _now(session: Session) -> float:
    """Return the seconds since 1970 that all who share the database agree on."""
    if session.get_bind().dialect.name != "postgresql":
        return time.time()
    return float(session.scalars(text("SELECT extract(epoch FROM clock_timestamp())")).one())
