"""kill -9 of each service in the middle of a job: it finishes with the same student."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.suite import suite

pytestmark = [pytest.mark.e2e, pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900)]


def test_a_job_survives_the_death_of_every_service(tmp_path: Path) -> None:
    with suite(tmp_path / "calm") as calm:
        expected = calm.weights_digest(calm.finish(calm.create(calm.prepare(120))))
    with suite(tmp_path / "rough") as rough:
        name = rough.create(rough.prepare(120))
        for service, stage in (
            ("gateway", "teacher_outputs"),
            ("concepts", "regions"),
            ("student", "fit"),
        ):
            rough.wait_stage(name, stage)
            rough.kill(service)
            rough.start(service)
            if service == "gateway":
                rough.wait(service)
        job = rough.finish(name)
        assert rough.weights_digest(job) == expected
