"""What deletions, retention and the chores by the clock leave behind, and what cannot stop them."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
from sqlalchemy import delete, event, func, select, update
from stillhouse.gateway.v1 import projects_pb2

from services.common.errors import PeerUnavailable
from services.gateway.datasets import runner
from services.gateway.jobs import records as jobs
from services.gateway.jobs.reviews import JobReviewRow
from services.gateway.projects import deletion, retention
from services.gateway.projects.chores import _LOCK, Chores
from services.gateway.projects.deletion import Deletions
from services.gateway.projects.records import begin_deletion
from services.gateway.projects.records import deletion as newest_deletion
from services.gateway.projects.retention import Keeping, Removed
from services.gateway.projects.rows import ProjectRow
from services.gateway.store import (
    DatasetRow,
    JobRow,
    RequestRow,
    Store,
    StudentRow,
    VersionRow,
    answered,
    record,
)
from tests.gateway.edge_world import make_archive
from tests.gateway.lab import Lab, lab_root, prompts
from tests.gateway.language_peers import HERE, name_of
from tests.gateway.test_projects import DAY_S, deletions, finished, settings

pytestmark = pytest.mark.asyncio(loop_scope="module")


def reviewed(lab: Lab, name: str) -> int:
    """Let a person have decided about an example of a job; return the job's key."""
    store = lab.world.gateway.store
    pk = jobs.get(store, HERE.project, name.rpartition("/")[2]).pk
    with store.write() as session:
        session.add(JobReviewRow(job_pk=pk, sample_id="1-1", decision="KEPT"))
    return pk


def reviews(store: Store, pk: int) -> int:
    query = select(func.count()).where(JobReviewRow.job_pk == pk)
    with store.read() as session:
        return session.scalar(query) or 0


async def retained(lab: Lab, days: float) -> list[Removed]:
    engine = lab.world.gateway.engine
    return await Keeping(engine._tools, engine, now=lambda: time.time() + days * DAY_S).work()


async def test_a_deletion_counts_and_removes_what_people_have_reviewed(lab: Lab) -> None:
    store = lab.world.gateway.store
    pk = reviewed(lab, await finished(lab))
    begin_deletion(store, HERE.project)
    await deletions(lab).work()
    row = newest_deletion(store, HERE.project)
    assert row.ended, row.waiting_for
    assert json.loads(row.before_json)["job reviews"] == 1
    assert json.loads(row.after_json)["job reviews"] == 0
    assert reviews(store, pk) == 0


async def test_retention_removes_a_reviewed_job(lab: Lab) -> None:
    pk = reviewed(lab, await finished(lab))
    assert (await settings(lab, retention={"finishedJobDays": 3})).status_code == 200
    found = [one.jobs for one in await retained(lab, 4) if one.project == HERE.project]
    assert found == [1]
    assert reviews(lab.world.gateway.store, pk) == 0


async def test_a_job_that_does_not_stop_holds_up_its_own_project_alone(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = lab.world.gateway.store
    lab.student.hang = True
    spec = {"dataset": await prompts(lab), "teacher": name_of("tuned"), "student": name_of("twin")}
    name = await lab.start(language={**spec, "modelId": "small"})
    await lab.stage(name, "fit")
    stuck = HERE.project
    begin_deletion(store, stuck)
    lab.fresh("another that is deleted")
    await prompts(lab)
    begin_deletion(store, HERE.project)

    monkeypatch.setattr(deletion, "_STOPPED_S", 0.0)
    await deletions(lab).work()
    assert name in newest_deletion(store, stuck).waiting_for
    assert newest_deletion(store, HERE.project).ended

    monkeypatch.undo()
    lab.student.hang = False
    await deletions(lab).work()
    assert newest_deletion(store, stuck).ended


def ended_jobs(store: Store, project: str, count: int, *, with_versions: int) -> None:
    """Make jobs that have succeeded, the first of which have made versions of a student."""
    with store.write() as session:
        student = StudentRow(
            project=project,
            student_id="s",
            head=1,
            promoted=1,
            dataset="",
            teacher="",
            encoder="",
            classes_json="[]",
        )
        session.add(student)
        session.flush()
        for number in range(count):
            row = JobRow(project=project, job_id=f"concept-{number}", state="SUCCEEDED")
            row.spec_json, row.ended = "{}", time.time()
            session.add(row)
            if number < with_versions:
                made = VersionRow(student_pk=student.pk, number=number + 1, job=jobs.name_of(row))
                made.weights_digest = made.card_digest = "0" * 64
                session.add(made)


async def test_jobs_that_stay_do_not_keep_retention_from_the_others(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = lab.world.gateway.store
    ended_jobs(store, HERE.project, 4, with_versions=3)
    assert (await settings(lab, retention={"finishedJobDays": 3})).status_code == 200
    monkeypatch.setattr(retention, "_AT_ONCE", 2)
    found = [one.jobs for one in await retained(lab, 4) if one.project == HERE.project]
    assert found == [1]
    with store.read() as session:
        left = set(session.scalars(select(JobRow.job_id).where(JobRow.project == HERE.project)))
    assert left == {"concept-0", "concept-1", "concept-2"}


async def test_a_project_whose_retention_fails_does_not_stop_anothers(lab: Lab) -> None:
    gateway, failing = lab.world.gateway, f"{HERE.project}-a"
    good = f"{HERE.project}-b"
    for project in (failing, good):
        ended_jobs(gateway.store, project, 1, with_versions=0)
        with gateway.store.write() as session:
            session.add(ProjectRow(project=project, retention_json='{"finishedJobDays": 3}'))

    class Failing(Keeping):
        async def _apply(self, project: str, rules: projects_pb2.Retention) -> Removed:
            if project == failing:
                raise PeerUnavailable("student is away")
            return await super()._apply(project, rules)

    tools, engine = gateway.engine._tools, gateway.engine
    found = await Failing(tools, engine, now=lambda: time.time() + 4 * DAY_S).work()
    assert good in {one.project for one in found}
    assert failing not in {one.project for one in found}


async def test_the_lock_of_the_chores_is_taken_and_given_back_beside_the_event_loop(
    postgres_url: str,
) -> None:
    store, other = Store(postgres_url), Store(postgres_url)
    threads, taken = set(), []
    event.listen(
        store._engine, "before_cursor_execute", lambda *_: threads.add(threading.get_ident())
    )
    event.listen(store._engine, "commit", lambda *_: threads.add(threading.get_ident()))
    chores = Chores(store, cast("Any", None), cast("Any", None))

    async def work() -> None:
        with other.alone(_LOCK) as is_free:
            taken.append(not is_free)

    await chores._try("this", work)
    assert taken == [True]
    assert threads
    assert threading.get_ident() not in threads
    with other.alone(_LOCK) as is_free:
        assert is_free
    store.close()
    other.close()


class Ended(Deletions):
    """Deletions whose counts can be written behind, as by a stage of another gateway."""

    late = 0

    async def count(self, project: str) -> dict[str, int]:
        found = await super().count(project)
        if not any(found.values()) and self.late:
            self.late -= 1
            self._tools.blobs.put(project, b"computed meanwhile")
        return found


async def test_what_is_stored_behind_the_count_is_removed_before_a_deletion_ends(lab: Lab) -> None:
    gateway, gone = lab.world.gateway, HERE.project
    await prompts(lab)
    begin_deletion(gateway.store, gone)
    tools = gateway.engine._tools
    going = Ended(tools, gateway.engine, gateway.instances, settle_s=0.5)
    going.late = 1
    await going.work()
    row = newest_deletion(gateway.store, gone)
    assert row.ended is None
    assert "may still store" in row.waiting_for
    assert lab.blobs.count(gone)["blobs"] == 1
    async with asyncio.timeout(20):
        while newest_deletion(gateway.store, gone).ended is None:
            await going.work()
            await asyncio.sleep(0.1)
    assert not any(lab.blobs.count(gone).values())


async def test_an_ingest_of_a_deleted_project_stores_nothing_more(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ingest has read a file when its project ends; what it reads then is not stored."""
    gateway, gone = lab.world.gateway, HERE.project
    monkeypatch.setattr(runner, "_PROGRESS_S", 0.0)
    pks: list[int] = []
    monkeypatch.setattr(gateway.runner, "launch", pks.append)
    answer = await lab.world.http.post(f"{lab_root()}/archives", content=make_archive())
    body = {"datasetId": "pics", "archive": answer.json()["archive"]}
    assert (await lab.post("/datasets", body)).status_code == 200
    real = gateway.runner._open

    def opened(request: Any) -> Any:
        return Slow(real(request), lambda: _delete_rows(gateway.store, gone))

    monkeypatch.setattr(gateway.runner, "_open", opened)
    before = lab.blobs.count(gone)["blobs"]
    await gateway.runner.run_ingest(pks[0])
    assert lab.blobs.count(gone)["blobs"] <= before + 1


class Slow:
    """A source whose project is deleted while its second file is read."""

    def __init__(self, source: Any, end: Callable[[], None]) -> None:
        self._source, self._end = source, end
        self.listing = source.listing

    def read(self, wanted: Any) -> Iterator[Any]:
        for number, one in enumerate(self._source.read(wanted)):
            if number == 1:
                self._end()
            yield one


def _delete_rows(store: Store, project: str) -> None:
    with store.write() as session:
        session.execute(delete(DatasetRow).where(DatasetRow.project == project))


async def test_a_project_that_is_being_deleted_takes_no_uploads_and_no_words(lab: Lab) -> None:
    begin_deletion(lab.world.gateway.store, "default")
    try:
        HERE.project = "default"
        answer = await lab.world.http.post(f"{lab_root()}/archives", content=make_archive())
        assert answer.status_code == 400
        assert "being deleted" in answer.text
        assert not any(lab.blobs.count("default").values())
        words = await lab.post("/conceptSets", {"conceptSetId": "some", "words": ["red"]})
        assert words.status_code == 400
        assert "being deleted" in words.text
    finally:
        await deletions(lab).work()


async def test_answers_of_old_calls_are_forgotten_and_young_ones_kept(
    any_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_ANSWERS_AT_ONCE", 2)
    now = time.time()
    with any_store.write() as session:
        for number in range(7):
            record(session, "p", f"id-{number}", "Make", b"", response=b"made")
        session.flush()
        session.execute(
            update(RequestRow).where(RequestRow.request_id < "id-5").values(created=now - 8 * DAY_S)
        )
    assert retention.forget_answers(any_store, now - 7 * DAY_S) == 5
    with any_store.read() as session:
        assert set(session.scalars(select(RequestRow.request_id))) == {"id-5", "id-6"}
        assert answered(session, "p", "id-6", "Make", b"") == b"made"


async def test_the_look_of_retention_forgets_old_answers(lab: Lab) -> None:
    store = lab.world.gateway.store
    with store.write() as session:
        record(session, HERE.project, "once", "Make", b"", response=b"made")
    await retained(lab, 6)
    with store.read() as session:
        assert answered(session, HERE.project, "once", "Make", b"") == b"made"
    await retained(lab, 8)
    with store.read() as session:
        assert answered(session, HERE.project, "once", "Make", b"") is None
