"""Several teachers and concepts services: they share a job's load, and none that ends loses any."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator

import pytest
import redis

from tests.e2e.fleet import INFERRING, Fleet, fleet
from tests.e2e.suite import Suite

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(3600)]
PHOTOS = 1536
"""Twenty-four shards, so that a job still goes on when an instance that is started during it is
ready, a minute later on a slow machine."""
DISTINCT = 0.6
"""At least this part of them is computed: the set holds many photos twice."""
PATIENCE_S = 1200.0
"""Longest wait for a job."""
Ran = tuple[Fleet, str]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    """A fleet of two that has run one job, and the digest of its student."""
    with fleet(tmp_path_factory.mktemp("fleet"), instances=2) as running:
        job = running.prepare(PHOTOS)
        before = computed(running, 2)
        digest = running.weights_digest(running.finish(running.create(job), timeout_s=PATIENCE_S))
        check_shares(before, computed(running, 2))
        yield running, digest


def computed(running: Fleet, instances: int) -> dict[str, list[int]]:
    """Images that each instance has put through a model."""
    return {name: [running.images(name, at) for at in range(instances)] for name in INFERRING}


def check_shares(before: dict[str, list[int]], after: dict[str, list[int]]) -> None:
    """The instances of a service did equally much, within 20 %."""
    for name in INFERRING:
        shares = [new - old for new, old in zip(after[name], before[name], strict=True)]
        assert sum(shares) >= DISTINCT * PHOTOS, (name, shares)
        assert max(shares) <= 1.2 * min(shares), (name, shares)


def forget(running: Suite) -> None:
    """Drop what jobs have stored, so that the next one computes everything again."""
    with redis.Redis(unix_socket_path=str(running.socket)) as client:
        client.flushall()
    for stages in running.folder.glob("blobs/projects/*/refs/stages"):
        shutil.rmtree(stages)


def test_one_that_starts_during_a_job_takes_its_part(ran: Ran) -> None:
    running, digest = ran
    forget(running)
    job = running.create(running.concept_job())
    for name in INFERRING:
        running.launch(name, 2)
    assert all([running.until_busy(job, name, 2) for name in INFERRING])
    assert running.weights_digest(running.finish(job, timeout_s=PATIENCE_S)) == digest
    forget(running)
    before = computed(running, 3)
    again = running.finish(running.create(running.concept_job()), timeout_s=PATIENCE_S)
    assert running.weights_digest(again) == digest
    check_shares(before, computed(running, 3))


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_those_that_are_stopped_during_a_job_lose_nothing(ran: Ran, how: signal.Signals) -> None:
    running, digest = ran
    forget(running)
    for name in INFERRING:
        if running.instances[name, 0].process.poll() is not None:
            running.launch(name, 0)
            running.ready(name, 0)
    job = running.create(running.concept_job())
    for name, stage in (("teacher", "teacher_outputs"), ("concepts", "regions")):
        running.wait_stage(job, stage)
        running.end(name, 0, how)
    assert running.weights_digest(running.finish(job, timeout_s=PATIENCE_S)) == digest
