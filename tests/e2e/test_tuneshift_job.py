"""A tuneshift job with a review through four processes, on the real 135 M model."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from stillhouse.gateway.v1 import jobs_pb2, jobs_pb2_grpc

from tests.e2e import language
from tests.e2e.suite import LANGUAGE_SERVICES, PROJECT, Suite, suite

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def ran(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Suite, jobs_pb2.DistillationJob]]:
    """A suite in which a tuneshift job was reviewed by a person and has ended."""
    folder = tmp_path_factory.mktemp("language")
    with suite(folder, services=LANGUAGE_SERVICES) as running:
        language.prepare(running, steps=16)
        name = running.create(language.tuneshift(running, steps=2, review=True))
        running.wait_stage(name, "rounds", timeout_s=300)
        _review(running, name)
        yield running, running.finish(name, timeout_s=600)


def _review(running: Suite, name: str) -> None:
    """Wait for the review, drop the first example, keep what was filtered first, and go on."""
    for _ in range(1200):
        try:
            found = language.samples(running, name)
            kept = [one.sample_id for one in found if one.state == jobs_pb2.SAMPLE_STATE_KEPT]
            filtered = [one for one in found if one.state == jobs_pb2.SAMPLE_STATE_FILTERED]
            with running.channel() as channel:
                jobs_pb2_grpc.DistillationServiceStub(channel).ReviewJobSamples(
                    jobs_pb2.ReviewJobSamplesRequest(
                        job=name,
                        drop_ids=kept[:1],
                        keep_ids=[one.sample_id for one in filtered if one.answer][:1],
                        finish=True,
                    ),
                    timeout=30,
                )
            return
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.FAILED_PRECONDITION:
                raise
    raise AssertionError("the job never waited for its review")


Ran = tuple[Suite, jobs_pb2.DistillationJob]


def test_the_report_has_rounds_arms_and_references(ran: Ran) -> None:
    running, job = ran
    report = running.read_json(job.report.digest)
    rounds, arms = report["rounds"], report["arms"]
    assert isinstance(rounds, list)
    assert isinstance(arms, list)
    assert len(rounds) == 2
    assert all(one["prompts"] == 8 for one in rounds)
    assert [arm["arm"] for arm in arms] == ["tuneshift"]
    assert set(report["references"]) == {"base", "tuned"}  # type: ignore[call-overload]
    accuracy = [f for name, f in arms[0]["metrics"].items() if name.endswith("choice_accuracy")]
    assert 0 <= accuracy[0]["low"] <= accuracy[0]["value"] <= accuracy[0]["high"] <= 1


def test_a_persons_decisions_are_kept(ran: Ran) -> None:
    running, job = ran
    states = {one.state for one in language.samples(running, job.name)}
    assert jobs_pb2.SAMPLE_STATE_DROPPED in states
    with running.channel() as channel, pytest.raises(grpc.RpcError) as caught:
        jobs_pb2_grpc.DistillationServiceStub(channel).ReviewJobSamples(
            jobs_pb2.ReviewJobSamplesRequest(job=job.name, finish=True), timeout=30
        )
    assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION


def test_the_model_is_served_at_once(ran: Ran) -> None:
    running, job = ran
    assert job.model == f"{PROJECT}/models/shifted"
    assert language.generate(running, job.model, "The capital of France is").strip()
    assert language.files(running, job.model).base == "smollm2-135m"
