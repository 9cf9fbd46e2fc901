"""A gateway process killed in the middle of deleting a project: the deletion goes on after a
restart, comes to its end, and shows what there was."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from sqlalchemy import func, select
from stillhouse.gateway.v1 import projects_pb2 as pb
from stillhouse.gateway.v1 import projects_pb2_grpc
from stillhouse.student.v1 import student_pb2, student_pb2_grpc
from stillhouse.teacher.v1 import teacher_pb2, teacher_pb2_grpc

from services.common.blobs import BlobStore
from services.gateway.projects import records
from services.gateway.store import DatasetRow, JobEventRow, JobRow, Store
from tests import forgetting
from tests.student.suite import wait_until
from tests.support import service

pytestmark = [pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(900)]
GONE, KEPT = "gone", "kept"
RUNS = 3


class Teacher(teacher_pb2_grpc.TeacherServiceServicer):
    """Has nothing of anybody."""

    def ForgetProject(self, request: Any, context: Any) -> teacher_pb2.ForgetProjectResponse:
        return teacher_pb2.ForgetProjectResponse()


@dataclass
class Student(student_pb2_grpc.StudentServiceServicer):
    """Has three runs of each project; the first call that is to remove some waits to be let go."""

    removed: set[str] = field(default_factory=set)
    asked: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)

    def RemoveRuns(self, request: Any, context: Any) -> student_pb2.RemoveRunsResponse:
        if not request.dry_run:
            self.asked.set()
            self.go_on.wait(300)
        count = 0 if request.project in self.removed else RUNS
        if not request.dry_run:
            self.removed.add(request.project)
        return student_pb2.RemoveRunsResponse(run_count=count)


@dataclass(frozen=True)
class Suite:
    """What a gateway stands on, through its restarts."""

    folder: Path
    store: Store
    student: Student
    environment: dict[str, str]

    @property
    def projects(self) -> Path:
        return self.folder / "blobs" / "projects"

    def rows(self, project: str) -> int:
        """Return how many rows of datasets and jobs there are."""
        with self.store.read() as session:
            counts = (select(func.count()).where(one.project == project) for one in ROWS)
            return sum(session.scalar(one) or 0 for one in counts)


ROWS = (DatasetRow, JobRow)


@pytest.fixture
def suite(tmp_path: Path) -> Iterator[Suite]:
    server, student = grpc.server(ThreadPoolExecutor(8)), Student()
    teacher_pb2_grpc.add_TeacherServiceServicer_to_server(Teacher(), server)
    student_pb2_grpc.add_StudentServiceServicer_to_server(student, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    url = f"sqlite:///{tmp_path}/gateway.db"
    store = Store(url)
    environment = {
        "GATEWAY_DATABASE_URL": url,
        "GATEWAY_TEACHER_ADDRESS": address,
        "GATEWAY_STUDENT_ADDRESS": address,
    }
    yield Suite(tmp_path, store, student, environment)
    student.go_on.set()
    store.close()
    server.stop(None)


def fill(suite: Suite, project: str, folders: int) -> None:
    """Give a project a dataset, a job with an event, a ref and many blobs."""
    forgetting.fill(suite.projects / project / "blobs", folders=folders)
    BlobStore(str(suite.folder / "blobs")).put_ref(project, "models/small", b"{}")
    job = JobRow(project=project, job_id="j", state="SUCCEEDED", spec_json="{}")
    with suite.store.write() as session:
        session.add(DatasetRow(project=project, dataset_id="d", state="READY", source_json="{}"))
        session.add(job)
        session.flush()
        session.add(JobEventRow(job_pk=job.pk, seq=1, payload_json="{}"))


def deletion(suite: Suite) -> tuple[bool, dict[str, int]]:
    """Return whether the deletion has ended, and what it says there was."""
    row = records.deletion(suite.store, GONE)
    shown = records.deletion_message(row)
    return row.ended is not None, {one.kind: one.before for one in shown.data}


def test_a_deletion_goes_on_after_every_kill_and_shows_its_counts(suite: Suite) -> None:
    fill(suite, GONE, forgetting.FOLDERS)
    fill(suite, KEPT, 2)
    kept, blobs = forgetting.files(suite.projects / KEPT), suite.projects / GONE / "blobs"

    with service("gateway", suite.folder, **suite.environment) as first:
        with grpc.insecure_channel(first.address) as channel:
            stub = projects_pb2_grpc.ProjectServiceStub(channel)
            stub.DeleteProject(pb.DeleteProjectRequest(name=f"projects/{GONE}"), timeout=60)
        assert suite.student.asked.wait(240)  # all is counted, nothing is removed
        first.kill()
    ended, counted = deletion(suite)
    assert not ended
    assert suite.rows(GONE) == 2
    assert forgetting.count(blobs) == forgetting.FOLDERS
    suite.student.go_on.set()

    with service("gateway", suite.folder, **suite.environment) as second:
        wait_until(lambda: forgetting.count(blobs) < forgetting.FOLDERS, 240)
        second.kill()
    assert 0 < forgetting.count(blobs) < forgetting.FOLDERS, "the kill came too late"
    assert suite.rows(GONE) == 0
    assert deletion(suite) == (False, counted)

    with service("gateway", suite.folder, **suite.environment) as third:
        wait_until(lambda: deletion(suite)[0], 240)
        with grpc.insecure_channel(third.address) as channel:
            stub = projects_pb2_grpc.ProjectServiceStub(channel)
            asked = pb.GetProjectDeletionRequest(name=f"projects/{GONE}/deletion")
            shown = stub.GetProjectDeletion(asked, timeout=60).deletion
            with pytest.raises(grpc.RpcError) as caught:
                stub.GetProject(pb.GetProjectRequest(name=f"projects/{GONE}"), timeout=60)
            assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert {one.after for one in shown.data} == {0}
    assert {one.kind: one.before for one in shown.data} == counted
    there = {"jobs": 1, "job events": 1, "datasets": 1, "refs": 1, "training runs": RUNS}
    there["blobs"] = forgetting.FOLDERS * forgetting.FILES
    assert there.items() <= counted.items()
    assert not (suite.projects / GONE).exists()
    assert forgetting.files(suite.projects / KEPT) == kept
    assert suite.rows(KEPT) == 2
    assert suite.student.removed == {GONE}
