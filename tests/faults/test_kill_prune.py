"""kill -9 of teacher, student and gateway in every stage of a prune job of two rounds: the same cut
is chosen, and the same weights come out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from stillhouse.gateway.v1 import jobs_pb2

from tests.e2e import language
from tests.e2e.suite import Suite
from tests.e2e.tiny import model_names, prune, tiny_suite
from tests.faults.killing import in_stage, restart

pytestmark = [pytest.mark.e2e, pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(1800)]
_STEPS = 400
_RECORDS = 256


def _job() -> jobs_pb2.DistillationJob:
    return prune(
        steps=_STEPS,
        checkpoint_steps=10,
        non_embedding_share=0.4,
        rounds=2,
        candidates=2,
        ranking_steps=40,
        model_id="small",
    )


def _outcome(running: Suite, name: str) -> tuple[str, Any]:
    """The weights, and what was cut in both rounds."""
    job = running.finish(name, timeout_s=900)
    report: dict[str, Any] = running.read_json(job.report.digest)
    told = [(one["shape"], one["kept_layers"], one["after"]) for one in report["rounds"]]
    assert model_names(running) == ["small"]
    return language.files(running, job.model).weights_digest, told


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any]:
    """What a job gives that nothing disturbs."""
    with tiny_suite(tmp_path_factory.mktemp("calm"), records=_RECORDS) as running:
        return _outcome(running, running.create(_job()))


@pytest.mark.parametrize("service", ["teacher", "student", "gateway"])
def test_a_prune_job_survives_a_death_in_every_stage(
    tmp_path: Path, calm: tuple[str, Any], service: str
) -> None:
    with tiny_suite(tmp_path, records=_RECORDS) as rough:
        name = rough.create(_job())
        for stage, steps in (
            ("importance", 0),
            ("targets", 0),
            ("rank", 1),
            ("rounds", 30),
            ("fit", 1),
            ("fit", 150),
        ):
            found = in_stage(rough, name, stage, steps=steps)
            # Training goes on while another service is away, and may be over before it is back.
            assert found or not steps or service != "student", stage
            restart(rough, service)
        assert _outcome(rough, name) == calm
