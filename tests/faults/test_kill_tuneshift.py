"""kill -9 of teacher, student and gateway in every stage of a tuneshift job: the same examples are
kept, and the same weights come out."""

from __future__ import annotations

from pathlib import Path

import pytest
from stillhouse.gateway.v1 import jobs_pb2

from tests.e2e import language
from tests.e2e.suite import LANGUAGE_SERVICES, Suite, suite
from tests.faults.killing import in_stage, restart

pytestmark = [pytest.mark.e2e, pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(1800)]
_STEPS = 8
Outcome = tuple[list[tuple[str, int, str]], str]


def _outcome(running: Suite, name: str) -> Outcome:
    job = running.finish(name, timeout_s=900)
    kept = [
        (one.sample_id, one.state, f"{one.prompt}|{one.answer}|{one.nll_gap!r}")
        for one in language.samples(running, name)
    ]
    return kept, language.files(running, job.model).weights_digest


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """What a job gives that nothing disturbs."""
    folder = tmp_path_factory.mktemp("calm")
    with suite(folder, threads=1, services=LANGUAGE_SERVICES) as running:
        language.prepare(running, steps=16)
        found = _outcome(running, running.create(language.tuneshift(running, steps=_STEPS)))
    assert any(state == jobs_pb2.SAMPLE_STATE_KEPT for _, state, _ in found[0])
    return found


@pytest.mark.parametrize("service", ["teacher", "student", "gateway"])
def test_a_tuneshift_job_survives_a_death_in_every_stage(
    tmp_path: Path, calm: Outcome, service: str
) -> None:
    with suite(tmp_path, threads=1, services=LANGUAGE_SERVICES) as rough:
        language.prepare(rough, steps=16)
        name = rough.create(language.tuneshift(rough, steps=_STEPS))
        rough.wait_stage(name, "rounds")
        restart(rough, service)
        in_stage(rough, name, "fit", steps=1)
        restart(rough, service)
        in_stage(rough, name, "fit", steps=5)
        restart(rough, service)
        assert _outcome(rough, name) == calm
