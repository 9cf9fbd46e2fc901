"""Tells webhooks that jobs have ended: messages are rows until somebody has taken them.

A message is written in the transaction that ends the job, so that none is lost and none is told of
what did not happen. It is sent at least once; who receives it twice sees the same `webhook-id`.
Headers and signature are those of Standard Webhooks.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from services.common import logs
from services.common.errors import StillhouseError
from services.common.outbound import Addresses
from services.gateway.projects.records import key_of, webhooks_of
from services.gateway.projects.rows import DeliveryRow
from services.gateway.store import JobRow, Store

PAUSES_S = (5.0, 30.0, 120.0, 600.0, 3600.0, 6 * 3600.0, 24 * 3600.0)
"""Between two attempts; after the last one the message is given up."""
_ANSWER_S = 15.0
_ANSWER_BYTES = 4096
_LEASE_S = 60.0
"""How long a message that is being sent is left alone by other gateways."""
_AT_ONCE, _OF_ONE = 8, 3
"""Messages that are under way, and those of one project: its slow webhook holds up no other's."""
_log = logs.get(__name__)


def tell(session: Session, row: JobRow) -> None:
    """Write the messages of a job that ends, in its transaction."""
    hooks = webhooks_of(session, row.project)
    if not hooks:
        return
    result = json.loads(row.result_json)
    data = {
        "job": f"projects/{row.project}/distillationJobs/{row.job_id}",
        "state": row.state,
        "student_version": result.get("student_version", ""),
        "model": result.get("model", ""),
        "error": json.loads(row.error).get("message", "") if row.error else "",
    }
    ended = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(row.ended or time.time()))
    body = json.dumps({"type": f"job.{row.state.lower()}", "timestamp": ended, "data": data})
    for uri in hooks:
        message_id = f"msg_{uuid.uuid4().hex}"
        session.add(DeliveryRow(project=row.project, message_id=message_id, uri=uri, body=body))


def signature(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """Return the header `webhook-signature` of a message."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    digest = hmac.new(key_of(secret), signed, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


class Deliveries:
    """Sends what is due. Several gateways may: each message is sent by one at a time."""

    def __init__(
        self,
        store: Store,
        addresses: Addresses,
        *,
        every_s: float = 1.0,
        pauses_s: tuple[float, ...] = PAUSES_S,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._addresses, self._every_s = store, addresses, every_s
        self._pauses_s, self._now = pauses_s, now
        self._task: asyncio.Task[None] | None = None
        self._under_way: dict[asyncio.Task[None], str] = {}

    def start(self) -> None:
        """Send from now on, what an earlier process left first."""
        self._task = asyncio.create_task(self._work(), name="webhooks")

    async def stop(self) -> None:
        """Stop; what is under way is sent again by whoever is next."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        for task in list(self._under_way):
            task.cancel()

    async def _work(self) -> None:
        while True:
            taken: list[tuple[DeliveryRow, str]] = []
            try:
                if len(self._under_way) < _AT_ONCE:
                    counts = Counter(self._under_way.values())
                    taken = await asyncio.to_thread(self._take, counts)
            except Exception as error:  # a database that is away for a moment
                _log.warning("webhooks wait", reason=str(error)[:200])
            for row, secret in taken:
                task = asyncio.create_task(self._deliver(row, secret), name="webhook")
                self._under_way[task] = row.project
                task.add_done_callback(self._under_way.pop)
            if not taken:
                await asyncio.sleep(self._every_s)

    async def _deliver(self, row: DeliveryRow, secret: str) -> None:
        try:
            await asyncio.to_thread(self._send, row, secret)
        except Exception as error:  # it is due again when its lease is over
            _log.warning("webhook waits", id=row.message_id, reason=str(error)[:200])

    def _take(self, under_way: Mapping[str, int]) -> list[tuple[DeliveryRow, str]]:
        """Return messages that are due, each with its secret, and keep others from them; none of a
        project with as many under way as it may have."""
        now, busy = self._now(), [one for one, count in under_way.items() if count >= _OF_ONE]
        query = select(DeliveryRow).where(DeliveryRow.due <= now, DeliveryRow.project.not_in(busy))
        query = query.order_by(DeliveryRow.due)
        with self._store.read() as session:  # mostly there is nothing: no write for that
            if session.scalars(query.limit(1)).first() is None:
                return []
        room, counts = _AT_ONCE - sum(under_way.values()), Counter(under_way)
        with self._store.write() as session:
            found = []
            for row in session.scalars(query.limit(room).with_for_update(skip_locked=True)).all():
                counts[row.project] += 1
                if counts[row.project] <= _OF_ONE:
                    row.due = now + _LEASE_S
                    secret = webhooks_of(session, row.project).get(row.uri, "")
                    found.append((row, secret))
            return found

    def _send(self, row: DeliveryRow, secret: str) -> None:
        """Send a message and note how that went; without its webhook it is not wanted any more."""
        error = self._attempt(row, secret) if secret else ""
        with self._store.write() as session:
            there = session.get(DeliveryRow, row.pk)
            if there is None:
                return
            if not error or there.attempts >= len(self._pauses_s):
                if error:
                    _log.error("webhook given up", uri=row.uri, id=row.message_id, why=error)
                session.delete(there)
                return
            due = self._now() + self._pauses_s[there.attempts]
            values = {"attempts": there.attempts + 1, "due": due, "error": error[:500]}
            session.execute(update(DeliveryRow).where(DeliveryRow.pk == row.pk).values(values))
        _log.warning("webhook not delivered", uri=row.uri, attempt=row.attempts + 1, why=error)

    def _attempt(self, row: DeliveryRow, secret: str) -> str:
        """Return why a message was not taken; empty where it was."""
        body, timestamp = row.body.encode(), int(self._now())
        headers = {
            "content-type": "application/json",
            "user-agent": "stillhouse-webhooks",
            "webhook-id": row.message_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signature(secret, row.message_id, timestamp, body),
        }
        try:
            answer = self._addresses.post(
                row.uri, body, headers, timeout_s=_ANSWER_S, most=_ANSWER_BYTES
            )
        except StillhouseError as error:
            return error.message
        return "" if 200 <= answer.status < 300 else f"it answered {answer.status}"
