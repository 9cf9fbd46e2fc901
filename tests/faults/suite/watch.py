"""What a campaign sees of a job: its rows, read past every proxy, and the events that a client
gets."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
from stillhouse_client.client import AsyncClient
from stillhouse_client.jobs import FINAL

ENDED = ("SUCCEEDED", "FAILED", "CANCELLED")
_LOOK_S, _SHORT_LOOK_S = 0.05, 0.008
_SHORT = ("ingest", "check", "estimate", "publish")
"""Stages of some milliseconds, which are looked for more often."""
_AWAY_S = 0.1


@dataclass
class Seen:
    """A job at one moment."""

    state: str = ""
    stages: dict[str, bool] = field(default_factory=dict)
    """Stages that have begun, and whether each is over."""

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def inside(self) -> str:
        """The stages that are going on, as one text."""
        if self.ended:
            return "ended"
        return "+".join(name for name, over in self.stages.items() if not over) or "between"


class Database:
    """Reads the tables of a world, and waits while its server is away."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._connection: psycopg.AsyncConnection[Any] | None = None

    async def rows(self, query: str, *given: object) -> list[tuple[Any, ...]]:
        """Run a query; where the server does not answer within a moment, run it again."""
        while True:
            try:
                async with asyncio.timeout(5):
                    return await self._rows(query, given)
            except (psycopg.Error, OSError, TimeoutError):
                await self.close()
                await asyncio.sleep(_AWAY_S)

    async def _rows(self, query: str, given: Sequence[object]) -> list[tuple[Any, ...]]:
        if self._connection is None:
            self._connection = await psycopg.AsyncConnection.connect(self._dsn, autocommit=True)
        cursor = await self._connection.execute(query.encode(), given)
        return await cursor.fetchall()

    async def close(self) -> None:
        """Let the connection go."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await connection.close()

    async def job(self, name: str) -> Seen:
        """A job as its newest event has it; nothing where there is no such job yet."""
        project, job_id = name.split("/")[1::2]
        found = await self.rows(
            "SELECT e.payload_json, j.state FROM jobs j JOIN job_events e ON e.job_pk = j.pk"
            " WHERE j.project = %s AND j.job_id = %s ORDER BY e.seq DESC LIMIT 1",
            project,
            job_id,
        )
        if not found:
            return Seen()
        payload = json.loads(found[0][0])
        stages = {one["stage"]: bool(one["complete"]) for one in payload["stages"]}
        return Seen(found[0][1], stages)

    async def until(self, name: str, stage: str) -> Seen:
        """Wait until a job has begun a stage, or ended."""
        while True:
            seen = await self.job(name)
            if seen.ended or stage in seen.stages:
                return seen
            await asyncio.sleep(_SHORT_LOOK_S if stage in _SHORT else _LOOK_S)

    async def until_ended(self, name: str, *, timeout_s: float) -> Seen:
        """Wait for a job's end; return where it is after that time."""
        until_s = time.monotonic() + timeout_s
        while True:
            seen = await self.job(name)
            if seen.ended or time.monotonic() > until_s:
                return seen
            await asyncio.sleep(0.1)


@dataclass
class Watched:
    """What one client was told about a job."""

    sequences: list[int] = field(default_factory=list)
    ended: int = 0
    error: str = ""

    async def follow(self, one: AsyncClient, name: str, give_up_s: float) -> None:
        """Watch a job to its end through every fault, as a person's terminal would."""
        try:
            async for event in one.jobs.watch(name, give_up_s=give_up_s):
                self.sequences.append(int(event.resume_token))
                self.ended += event.job.state in FINAL
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}"[:300]

    def complaints(self) -> list[str]:
        """What was wrong with the events: lost, doubled or out of order."""
        if self.error:
            return [f"the watcher ended with {self.error}"]
        wanted = list(range(1, len(self.sequences) + 1))
        found = [] if self.sequences == wanted else [f"events came as {self.sequences[:60]}"]
        return found if self.ended == 1 else [*found, f"{self.ended} last events"]
