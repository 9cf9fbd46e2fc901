"""PostgreSQL dies under a gateway and comes back: callers are told, jobs wait and end well."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pgserver
import pytest

from services.gateway.jobs import records
from services.gateway.jobs.engine import Engine
from services.gateway.jobs.job import Job
from services.gateway.outages import DatabaseAway, outlast
from services.gateway.store import Store
from tests.gateway.stories import close, count, create, make_tools, reached, runs


class Database:
    """A PostgreSQL server of one's own that can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self._server = pgserver.get_server(folder)
        self.url = self._server.get_uri().replace("postgresql://", "postgresql+psycopg://")

    def crash(self) -> None:
        """End it without a checkpoint and without goodbyes."""
        server = self._server
        pgserver.pg_ctl(["-m", "immediate", "stop"], pgdata=server.pgdata, user=server.system_user)

    def start(self) -> None:
        self._server.ensure_postgres_running()

    def close(self) -> None:
        self._server.cleanup()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(tmp_path / "pg")
    yield made
    made.start()
    made.close()


async def restless(job: Job) -> dict[str, str]:
    """A story whose last stage tells of itself all the time, until a file appears."""

    async def talk(job: Job) -> None:
        await count(job, "fit")
        while not (Path(job.tools.settings.blob_url) / "go").exists():
            await job.progress.say("fit: still here")
            await asyncio.sleep(0.05)

    await job.stage("ingest", count, "ingest")
    await job.stage("fit", talk)
    return {"student_version": "1"}


async def test_a_job_waits_for_its_database_and_goes_on(tmp_path: Path, database: Database) -> None:
    tools = make_tools(tmp_path, database.url)
    engine = Engine(tools, {"concept": restless})
    await engine.start()
    try:
        row = create(tools)
        await engine.enqueue(row)
        await reached(tmp_path, "fit")
        await asyncio.to_thread(database.crash)
        with pytest.raises(DatabaseAway, match="away"):
            records.get(tools.store, "default", row.job_id)
        await asyncio.sleep(2.0)
        await asyncio.to_thread(database.start)
        await reached(tmp_path, "fit", times=2)  # the stage that was cut off, and only that
        (tmp_path / "blobs/go").touch()
        until_s = time.monotonic() + 60
        while records.unfinished(tools.store):
            assert time.monotonic() < until_s
            await asyncio.sleep(0.1)
        ended = records.get(tools.store, "default", row.job_id)
        assert (ended.state, ended.error) == ("SUCCEEDED", "")
        assert runs(tmp_path) == ["ingest", "fit", "fit"]
    finally:
        await engine.stop()
        await close(tools)


def test_a_database_that_was_never_there_is_away(tmp_path: Path) -> None:
    with pytest.raises(DatabaseAway):
        Store(f"postgresql+psycopg://nobody@/none?host={tmp_path}")


def test_what_is_wrong_with_a_statement_is_no_outage(database: Database) -> None:
    store = Store(database.url)
    try:
        with pytest.raises(Exception, match="does not exist") as caught, store.read() as session:
            session.connection().exec_driver_sql("SELECT * FROM nowhere")
        assert not isinstance(caught.value, DatabaseAway)
    finally:
        store.close()


async def test_waiting_for_a_database_ends() -> None:
    tries = 0

    async def attempt() -> None:
        nonlocal tries
        tries += 1
        raise DatabaseAway("away")

    with pytest.raises(DatabaseAway):
        await outlast(attempt, give_up_s=1.5, what="nothing")
    assert tries == 2
