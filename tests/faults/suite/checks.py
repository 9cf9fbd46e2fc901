"""What must hold after a job, whatever was done to the suite while it ran."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from pathlib import Path

from services.common.blobs import BlobStore
from tests.faults.suite import processes
from tests.faults.suite.watch import Database
from tests.faults.suite.world import OURS, World

_SETTLE_S = 20.0
_IDLE_S = 8
STAGE_REFS = ("teacher_outputs", "teacher_views", "regions", "concepts", "features", "targets")
"""Stages whose stored outputs depend on nothing that differs between two projects."""


async def twice(db: Database, project: str, name: str, jobs: int) -> list[str]:
    """What happened more than once, or in the wrong order, by the tables."""
    job_id = name.rpartition("/")[2]
    found = []
    [(rows,)] = await db.rows("SELECT count(*) FROM jobs WHERE project = %s", project)
    if rows != jobs:
        found.append(f"{rows} jobs instead of {jobs}")
    events = await db.rows(
        "SELECT e.seq, e.payload_json FROM job_events e JOIN jobs j ON j.pk = e.job_pk"
        " WHERE j.project = %s AND j.job_id = %s ORDER BY e.seq",
        project,
        job_id,
    )
    found += _order([int(seq) for seq, _ in events], [json.loads(text) for _, text in events])
    versions = await db.rows(
        "SELECT v.job, count(*) FROM student_versions v JOIN students s ON s.pk = v.student_pk"
        " WHERE s.project = %s GROUP BY v.job HAVING count(*) > 1",
        project,
    )
    found += [f"{count} versions of {job}" for job, count in versions]
    told = await db.rows(
        "SELECT e.version, count(*) FROM student_events e JOIN students s ON s.pk = e.student_pk"
        " WHERE s.project = %s GROUP BY e.version HAVING count(*) > 1",
        project,
    )
    found += [f"version {version} was told of {count} times" for version, count in told]
    ran = await db.rows(
        "SELECT status FROM dbos.workflow_status WHERE workflow_uuid = %s", f"{project}.{job_id}"
    )
    if [status for (status,) in ran] not in (["SUCCESS"], ["ERROR"]):
        found.append(f"the job's workflow is {ran}")
    return found


def _order(sequences: list[int], payloads: list[dict[str, object]]) -> list[str]:
    found = []
    if sequences != list(range(1, len(sequences) + 1)):
        found.append(f"event numbers {sequences[:60]}")
    states = [str(one["state"]) for one in payloads]
    ends = [at for at, state in enumerate(states) if state in ("SUCCEEDED", "FAILED", "CANCELLED")]
    if ends != [len(states) - 1]:
        found.append(f"ends at events {ends} of {len(states)}")
    if "RUNNING" in states and "QUEUED" in states[states.index("RUNNING") :]:
        found.append("a running job was queued again")
    for one in ("started", "finished"):
        count = sum(payload["message"] == one for payload in payloads)
        if count > 1:
            found.append(f"{one!r} {count} times")
    return found


def refs(blobs: Path, project: str) -> dict[str, str]:
    """What the stages of a project have stored, by the name under which a job finds it."""
    store, found = BlobStore(str(blobs)), {}
    for stage in STAGE_REFS:
        for name in store.list_refs(project, f"stages/{stage}"):
            found[f"{stage}/{name}"] = store.get_ref(project, f"stages/{stage}/{name}").decode()
    return found


def other_bytes(got: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    """Outputs that are not those of the undisturbed job: a name's bytes follow from the name."""
    found = [f"{name} holds other bytes" for name in got if got[name] != wanted.get(name)]
    return found + [f"{name} is missing" for name in wanted if name not in got]


async def left_over(world: World, db: Database, project: str, idle: Mapping[str, int]) -> list[str]:
    """Processes, files and locks that should be gone by now."""
    until_s = time.monotonic() + _SETTLE_S
    while True:
        found = _processes(world, idle) + await _locks(db)
        if not found or time.monotonic() > until_s:
            return found + temporary_files(world, project)
        await asyncio.sleep(0.5)


def idle_counts(world: World) -> dict[str, int]:
    """How many processes each service has when it has nothing to do."""
    return {one: len(processes.family(world.running[one].pid)) for one in OURS}


def _processes(world: World, idle: Mapping[str, int]) -> list[str]:
    families = {one: processes.family(world.running[one].pid) for one in world.running}
    known = {each.pid for family in families.values() for each in family}
    found = [f"orphan {one}" for one in processes.marked(world.mark) if one.pid not in known]
    for service, count in idle.items():
        if len(families[service]) > count:
            found.append(f"{service} has {len(families[service])} processes instead of {count}")
    return found


async def _locks(db: Database) -> list[str]:
    """Locks and transactions of somebody who has done nothing for a while. The engine's upkeep
    holds a lock for moments, all the time."""
    quiet = f"now() - a.state_change > interval '{_IDLE_S} s'"
    locks = await db.rows(
        "SELECT l.classid, l.objid, left(a.query, 80) FROM pg_locks l JOIN pg_stat_activity a"
        f" USING (pid) WHERE l.locktype = 'advisory' AND {quiet}"
    )
    open_ones = await db.rows(
        "SELECT a.pid, left(a.query, 80) FROM pg_stat_activity a"
        f" WHERE a.state = 'idle in transaction' AND {quiet}"
    )
    found = [f"advisory lock {first} {second} is held: {query}" for first, second, query in locks]
    return found + [f"transaction left open: {query}" for _, query in open_ones]


def temporary_files(world: World, project: str) -> list[str]:
    """Files that were to be renamed or removed."""
    roots = [world.blobs / "projects" / project, world.folder / "runs" / project]
    paths = [path for root in roots for path in root.rglob("*") if path.is_file()]
    left = [one for one in paths if one.name.startswith(".") or "tmp" in one.parts[-2:-1]]
    return [f"temporary file {path.relative_to(world.folder)}" for path in left]
