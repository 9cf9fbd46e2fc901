"""A backup that was made while jobs ran, restored into an empty place: the same students, and jobs
that go on, one from the middle of its work and one from the review it waits in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from stillhouse.common.v1 import items_pb2
from stillhouse.gateway.v1 import jobs_pb2, jobs_pb2_grpc, students_pb2, students_pb2_grpc

from tests.e2e import language
from tests.e2e.suite import LANGUAGE_SERVICES, Suite, suite
from tests.support import photo

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(5400)]
_PATIENCE_S = 1500.0
"""Longest wait for a job: a machine that does much else must not decide."""


def keep(folder: Path, *arguments: str, code: int = 0) -> dict[str, Any]:
    """Run a command of `services.gateway.keeping` on a suite's stores, as `stillhouse` does."""
    stores = {
        "GATEWAY_DATABASE_URL": f"sqlite:///{folder}/gateway.db",
        "GATEWAY_BLOB_URL": str(folder / "blobs"),
    }
    done = subprocess.run(
        [sys.executable, "-m", "services.gateway.keeping", *arguments, "--json"],
        env={**os.environ, **stores},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def predictions(running: Suite, student: str) -> list[bytes]:
    """What the promoted version says of five photos."""
    items = [items_pb2.ImageInput(data=photo(seed)) for seed in range(5)]
    with running.channel() as channel:
        stub = students_pb2_grpc.StudentsServiceStub(channel)
        request = students_pb2.PredictImagesRequest(student=student, items=items)
        reply = stub.PredictImages(request, timeout=120)
    return [one.SerializeToString(deterministic=True) for one in reply.results]


def test_a_job_goes_on_in_a_restored_suite_and_gc_beside_it_takes_nothing(tmp_path: Path) -> None:
    backup = str(tmp_path / "backup")
    with suite(tmp_path / "first") as running:
        done = running.finish(running.create(running.prepare(60)), timeout_s=_PATIENCE_S)
        student = done.student_version.rpartition("/versions/")[0]
        expected = (running.weights_digest(done), predictions(running, student))
        name = running.create(running.concept_job(seed=7))
        running.wait_stage(name, "concepts", timeout_s=_PATIENCE_S)
        made = keep(running.folder, "backup", backup)
        assert made["damaged"] == []
        for _ in range(3):  # beside the job
            swept = keep(running.folder, "gc", "--yes", "--grace-hours", "0")
            assert swept["skipped"] == {}
        second = running.weights_digest(running.finish(name, timeout_s=_PATIENCE_S))
        assert keep(running.folder, "fsck")["findings"] == []
    keep(tmp_path / "second", "restore", backup, "--digest", made["digest"])
    assert keep(tmp_path / "second", "fsck")["findings"] == []
    with suite(tmp_path / "second") as restored:
        assert (
            restored.weights_digest(restored.job(done.name)),
            predictions(restored, student),
        ) == (expected)
        assert restored.weights_digest(restored.finish(name, timeout_s=_PATIENCE_S)) == second


def test_a_job_waits_for_its_review_in_a_restored_suite(tmp_path: Path) -> None:
    backup = str(tmp_path / "backup")
    with suite(tmp_path / "first", services=LANGUAGE_SERVICES) as running:
        language.prepare(running, steps=8)
        name = running.create(language.tuneshift(running, steps=2, review=True))
        until_review(running, name)
        before = [one.SerializeToString() for one in language.samples(running, name)]
        keep(running.folder, "backup", backup)
    keep(tmp_path / "second", "restore", backup)
    with suite(tmp_path / "second", services=LANGUAGE_SERVICES) as restored:
        assert [one.SerializeToString() for one in language.samples(restored, name)] == before
        until_review(restored, name)
        with restored.channel() as channel:
            jobs_pb2_grpc.DistillationServiceStub(channel).ReviewJobSamples(
                jobs_pb2.ReviewJobSamplesRequest(job=name, finish=True), timeout=30
            )
        assert restored.finish(name, timeout_s=_PATIENCE_S).model


def until_review(running: Suite, name: str) -> None:
    """Wait until the job waits for a person."""
    until_s = time.monotonic() + _PATIENCE_S
    while time.monotonic() < until_s:
        job = running.job(name)
        if any(one.stage == "review" and not one.complete for one in job.stages):
            return
        assert job.state in (jobs_pb2.JOB_STATE_QUEUED, jobs_pb2.JOB_STATE_RUNNING), job
        time.sleep(0.2)
    raise RuntimeError("the job never waited for its review")
