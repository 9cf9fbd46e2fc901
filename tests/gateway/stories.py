"""A small story of four stages, and a gateway process that runs it and can be killed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path

from sqlalchemy import create_engine, make_url
from stillhouse.gateway.v1 import jobs_pb2 as pb

from services.common.blobs import BlobStore
from services.gateway.cache import EmbeddingCache
from services.gateway.jobs import records
from services.gateway.jobs.engine import Engine
from services.gateway.jobs.feed import Feed
from services.gateway.jobs.heartbeat import Heartbeat
from services.gateway.jobs.job import Job, Tools, together
from services.gateway.peers import Peers
from services.gateway.settings import GatewaySettings
from services.gateway.store import JobRow, Store

SPEC = pb.DistillationJob(
    concept=pb.ConceptJobSpec(
        dataset="projects/default/datasets/d", teacher="projects/default/models/m"
    )
)


def make_tools(folder: Path, database_url: str = "", executor_id: str = "gateway-0") -> Tools:
    settings = GatewaySettings(
        database_url=database_url or f"sqlite:///{folder}/gateway.db",
        executor_id=executor_id,
        heartbeat_s=0.1,
        blob_url=str(folder / "blobs"),
        student_address="127.0.0.1:1",
    )
    store = Store(settings.database_url)
    return Tools(
        settings,
        store,
        BlobStore(settings.blob_url),
        Peers.connect(settings),
        EmbeddingCache(""),
        Feed(store),
    )


def new_database(url: str, name: str) -> str:
    """Make an empty database on a PostgreSQL server and return its URL."""
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    return make_url(url).set(database=name).render_as_string(hide_password=False)


async def close(tools: Tools) -> None:
    await tools.feed.close()
    await tools.peers.close()
    tools.store.close()


def create(tools: Tools, project: str = "default", request_id: str = "") -> JobRow:
    request = pb.CreateDistillationJobRequest(project=project, job=SPEC, request_id=request_id)
    return records.create(tools.store, request)[0]


async def end(tools: Tools, row: JobRow, timeout_s: float = 30.0) -> records.Event:
    async def last() -> records.Event:
        return [event async for event in tools.feed.follow(row.pk, 0)][-1]

    return await asyncio.wait_for(last(), timeout_s)


async def count(job: Job, name: str, number: int = 0) -> int:
    """A stage that leaves a line in a file whenever it runs."""
    log = Path(job.tools.settings.blob_url) / "runs.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as out:
        out.write(f"{job.job_id} {name}\n")
    await job.progress.update(name, done=1, total=1, unit="images")
    return number + 1


def runs(folder: Path) -> list[str]:
    """Return the stages that have run, in order."""
    log = folder / "blobs/runs.log"
    return [line.split()[1] for line in log.read_text().splitlines()] if log.exists() else []


async def reached(folder: Path, stage: str, *, times: int = 1, timeout_s: float = 60.0) -> None:
    """Wait until a stage has run so often."""
    until_s = time.monotonic() + timeout_s
    while runs(folder).count(stage) < times:
        assert time.monotonic() < until_s, runs(folder)
        await asyncio.sleep(0.02)


async def story(job: Job) -> dict[str, str]:
    """Three stages, the middle ones side by side; waits in the last until a file appears."""
    first = await job.stage("ingest", count, "ingest")
    pair = await together(
        job.stage("teacher_outputs", count, "teacher_outputs", first),
        job.stage("regions", count, "regions", first + 10),
    )
    await job.stage("fit", wait_for_file)
    return {"student_version": f"{pair[0]} {pair[1]}"}


async def wait_for_file(job: Job) -> None:
    await count(job, "fit")
    while not (Path(job.tools.settings.blob_url) / "go").exists():
        await asyncio.sleep(0.02)


def start_doomed(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Start a gateway process that runs one job; return once the job is in its last stage."""
    process = subprocess.Popen([sys.executable, __file__, str(folder), *arguments])
    log, until_s = folder / "blobs/runs.log", time.monotonic() + 60
    while not (log.exists() and "fit" in log.read_text()):
        if process.poll() is not None or time.monotonic() > until_s:
            raise RuntimeError("the gateway did not reach the last stage")
        time.sleep(0.05)
    return process


async def _main(folder: Path, database_url: str = "", executor_id: str = "gateway-0") -> None:
    tools = make_tools(folder, database_url, executor_id)
    engine = Engine(tools, {"concept": story})
    await engine.start()
    Heartbeat(tools.store, executor_id, engine.recover, every_s=0.1).start()
    row = create(tools)
    await engine.enqueue(row)
    await end(tools, row, timeout_s=60)


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1]), *sys.argv[2:]))
