"""The audit log: what was changed or refused, written in batches, never changed. Append only."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from sqlalchemy import insert, select
from stillhouse.gateway.v1 import access_pb2 as pb

from services.common import logs, names
from services.gateway.access.buckets import Bucket
from services.gateway.access.identity import EVERY
from services.gateway.access.tables import AuditRow
from services.gateway.datasets.records import to_timestamp
from services.gateway.paging import Page
from services.gateway.store import Store

_MOST_CHARACTERS = 1_000
_BURST_S = 10.0
_log = logs.get(__name__)


@dataclass(frozen=True)
class Entry:
    """One call that changed something, or was refused."""

    project: str
    subject: str
    display_name: str
    method: str
    resource: str
    code: str
    message: str
    request_id: str
    peer: str
    time: float = field(default_factory=time.time)


class AuditLog:
    """Writes entries. Use from one event loop."""

    def __init__(self, store: Store, *, refusals_per_s: float) -> None:
        self._store = store
        self._refusals = Bucket(refusals_per_s, refusals_per_s * _BURST_S)
        self._waiting: list[tuple[Entry, asyncio.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None
        self._dropped = 0

    async def add(self, entry: Entry) -> None:
        """Write an entry of a change; return once it is stored, with others that came meanwhile."""
        await self._enqueue(entry)

    def note(self, entry: Entry) -> None:
        """Write an entry of a change whose caller has left, beside the call."""
        self._enqueue(entry)

    def refused(self, entry: Entry) -> None:
        """Write an entry of a refused call, beside the call; too many are only counted."""
        if self._refusals.take() > 0:
            self._dropped += 1
            return
        if self._dropped:
            _log.warning("refused calls left out of the audit log", count=self._dropped)
            self._dropped = 0
        self._enqueue(entry)

    async def close(self) -> None:
        """Wait until all entries are stored."""
        if self._task is not None:
            await asyncio.wait({self._task})

    def _enqueue(self, entry: Entry) -> asyncio.Future[None]:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((entry, done))
        if self._task is None:
            self._task = asyncio.create_task(self._work(), name="audit log")
        return done

    async def _work(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting, []
                await self._write([entry for entry, _ in batch])
                for _, done in batch:
                    if not done.done():
                        done.set_result(None)
        finally:
            self._task = None

    async def _write(self, entries: Sequence[Entry]) -> None:
        """Store entries. What was done is done, so a database that is away does not make the call
        fail: the entries are then in the process' log alone."""
        try:
            await asyncio.to_thread(_insert, self._store, entries)
        except Exception as error:
            for entry in entries:
                _log.error("not in the audit log", why=str(error)[:200], **asdict(entry))


def list_page(store: Store, project: str, page: Page) -> tuple[list[AuditRow], str]:
    """Return one page of a project's entries, newest first, and the next page's token; EVERY is
    all of them. Blocking."""
    query = select(AuditRow)
    if project != EVERY:
        query = query.where(AuditRow.project == project)
    if page.position:
        query = query.where(AuditRow.pk < page.position)
    with store.read() as session:
        rows = session.scalars(query.order_by(AuditRow.pk.desc()).limit(page.size + 1)).all()
    return page.cut(rows, [row.pk for row in rows])


def to_message(row: AuditRow) -> pb.AuditEntry:
    """Return an entry as admins see it."""
    return pb.AuditEntry(
        name=names.join(row.project or EVERY, "auditEntries", str(row.pk)),
        time=to_timestamp(row.time),
        subject=row.subject,
        display_name=row.display_name,
        method=row.method,
        resource=row.resource,
        code=row.code,
        message=row.message,
        request_id=row.request_id,
        peer=row.peer,
    )


def _insert(store: Store, entries: Sequence[Entry]) -> None:
    rows = [
        {name: _shown(one) if isinstance(one, str) else one for name, one in row.items()}
        for row in map(asdict, entries)
    ]
    with store.write() as session:
        session.execute(insert(AuditRow), rows)


def _shown(text: str) -> str:
    """A text as every database takes it: one that PostgreSQL refuses would take the entries of
    others, in the same batch, down with it."""
    sound = text.encode(errors="replace").decode()
    return sound.replace("\0", "\ufffd")[:_MOST_CHARACTERS]
