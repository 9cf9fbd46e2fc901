"""How much a project may use: calls a second, jobs that have not ended, bytes in the blob store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from services.common import logs
from services.common.blobs import BlobStore
from services.common.errors import QuotaReached
from services.gateway.access.buckets import Buckets
from services.gateway.access.tables import QuotaRow
from services.gateway.settings import GatewaySettings
from services.gateway.store import JobRow, Store

N = TypeVar("N", int, float)
_ENDED = ("SUCCEEDED", "FAILED", "CANCELLED")
_COUNTED_S = 300.0
_FULL_S = 10.0
"""How long a count of bytes is kept, and how long one that refuses."""
_RETRY_S = 60.0
_ASK = "or ask an admin of the installation for more (`stillhouse quota set`)"
_log = logs.get(__name__)


@dataclass(frozen=True)
class Limits:
    """Limits in force; 0 is none."""

    calls_per_second: float
    unfinished_jobs: int
    stored_bytes: int


@dataclass(frozen=True)
class OwnLimits:
    """Limits of a project's own; None is the gateway's."""

    calls_per_second: float | None = None
    unfinished_jobs: int | None = None
    stored_bytes: int | None = None


_NONE_OWN = OwnLimits()


class Quotas:
    """Refuses what is over a limit. `admit_job` blocks; all else belongs to one event loop."""

    def __init__(self, settings: GatewaySettings, store: Store, blobs: BlobStore) -> None:
        self._store, self._blobs = store, blobs
        self._keep_s = settings.key_cache_s
        self._defaults = Limits(
            settings.project_calls_per_s,
            settings.project_unfinished_jobs,
            settings.project_stored_bytes,
        )
        self._calls = Buckets()
        self._own: Mapping[str, OwnLimits] = {}
        self._fresh_until_s = 0.0
        self._reading: asyncio.Task[None] | None = None
        self._stored: dict[str, tuple[float, int]] = {}
        self._counting: dict[str, asyncio.Task[int]] = {}

    def limits(self, project: str) -> Limits:
        """Return the limits of a project, as they were some seconds ago at most."""
        own, base = self._own.get(project, _NONE_OWN), self._defaults
        if own is _NONE_OWN:
            return base
        return Limits(
            _first(own.calls_per_second, base.calls_per_second),
            _first(own.unfinished_jobs, base.unfinished_jobs),
            _first(own.stored_bytes, base.stored_bytes),
        )

    def own(self, project: str) -> OwnLimits:
        """Return what was set for a project."""
        return self._own.get(project, _NONE_OWN)

    async def admit(self, project: str, *, stores: bool) -> None:
        """Count a call of a project. Raises QuotaReached where it is one too many, or where it
        would store and there is no room."""
        await self._refresh()
        limits = self.limits(project)
        wait_s = self._calls.take(project, limits.calls_per_second)
        if wait_s > 0:
            raise QuotaReached(
                f"project {project} may make {limits.calls_per_second:g} calls a second at this "
                f"gateway; call less often, {_ASK}",
                subject=f"projects/{project}/calls_per_second",
                retry_after_s=wait_s,
            )
        if stores and limits.stored_bytes:
            await self._check_room(project, limits.stored_bytes)

    def admit_job(self, session: Session, project: str) -> None:
        """Raise QuotaReached where a project may have no further job, in the transaction that
        would add it."""
        limit = self.limits(project).unfinished_jobs
        if not limit:
            return
        if session.get_bind().dialect.name == "postgresql":  # others may be adding jobs as well
            key = func.hashtextextended(f"jobs of {project}", 0)
            session.execute(select(func.pg_advisory_xact_lock(key)))
        if (count := _unfinished(session, project)) >= limit:
            raise QuotaReached(
                f"project {project} has {count:,} jobs that wait or run, of {limit:,}; wait until "
                f"some have ended, cancel some, {_ASK}",
                subject=f"projects/{project}/unfinished_jobs",
                retry_after_s=_RETRY_S,
            )

    async def usage(self, project: str) -> tuple[int, int]:
        """Return (jobs that have not ended, bytes stored) of a project."""
        jobs = await asyncio.to_thread(self._count_jobs, project)
        return jobs, await self._bytes(project, _COUNTED_S)

    async def update(self, project: str, own: OwnLimits) -> None:
        """Set a project's own limits, all of them."""
        await asyncio.to_thread(self._write, project, own)
        await asyncio.to_thread(self._read)

    async def close(self) -> None:
        """Wait for what runs beside calls."""
        tasks = [*self._counting.values(), *([self._reading] if self._reading else [])]
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _refresh(self) -> None:
        """Read what was set for projects beside the call that finds it old; the first one waits."""
        now = time.monotonic()
        if now < self._fresh_until_s:
            return
        is_first, self._fresh_until_s = not self._fresh_until_s, now + max(self._keep_s, 1.0)
        self._reading = asyncio.create_task(self._read_again(), name="quotas")
        if is_first:
            await asyncio.shield(self._reading)

    async def _read_again(self) -> None:
        try:
            await asyncio.to_thread(self._read)
        except Exception as error:
            _log.warning("cannot read quotas; the last ones stay", why=str(error)[:200])

    def _read(self) -> None:
        with self._store.read() as session:
            self._own = {
                row.project: OwnLimits(row.calls_per_second, row.unfinished_jobs, row.stored_bytes)
                for row in session.scalars(select(QuotaRow))
            }

    def _write(self, project: str, own: OwnLimits) -> None:
        def work(session: Session) -> None:
            session.execute(delete(QuotaRow).where(QuotaRow.project == project))
            if own != _NONE_OWN:
                session.add(
                    QuotaRow(
                        project=project,
                        calls_per_second=own.calls_per_second,
                        unfinished_jobs=own.unfinished_jobs,
                        stored_bytes=own.stored_bytes,
                    )
                )

        self._store.change(work)

    def _count_jobs(self, project: str) -> int:
        with self._store.read() as session:
            return _unfinished(session, project)

    async def _check_room(self, project: str, limit: int) -> None:
        used = await self._bytes(project, _COUNTED_S)
        if used >= limit:  # somebody may have made room meanwhile
            used = await self._bytes(project, _FULL_S)
        if used >= limit:
            raise QuotaReached(
                f"project {project} stores {used:,} bytes of {limit:,}; delete what it needs no "
                f"more, {_ASK}",
                subject=f"projects/{project}/stored_bytes",
                retry_after_s=_RETRY_S,
            )

    async def _bytes(self, project: str, most_s: float) -> int:
        """Return the bytes of a project, counted `most_s` ago at most, once for all who ask."""
        counted_s, size = self._stored.get(project, (float("-inf"), 0))
        if time.monotonic() - counted_s < most_s:
            return size
        if project not in self._counting:
            self._counting[project] = asyncio.create_task(self._count(project), name="bytes")
        return await asyncio.shield(self._counting[project])

    async def _count(self, project: str) -> int:
        try:
            size = await asyncio.to_thread(self._blobs.stored_bytes, project)
            self._stored[project] = time.monotonic(), size
            return size
        finally:
            del self._counting[project]


def _unfinished(session: Session, project: str) -> int:
    query = select(func.count()).where(JobRow.project == project, JobRow.state.not_in(_ENDED))
    return session.scalar(query) or 0


def _first(own: N | None, base: N) -> N:
    return base if own is None else own
