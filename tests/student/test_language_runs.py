"""Language training in a real worker: killed in the middle, it ends with the same weights."""

from __future__ import annotations

import os
import signal

import pytest
from stillhouse.common.v1 import language_pb2
from stillhouse.student.v1 import student_pb2

from tests.student import language_suite, suite

pytestmark = [pytest.mark.slow, pytest.mark.faults]
STEPS = 40


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    home = tmp_path_factory.mktemp("language-runs")
    catalogue = language_suite.make_catalogue(home)
    with suite.service(
        home,
        threads="1",
        catalogue=str(catalogue),
        cache_dir=str(home / "cache"),
    ) as service:
        yield service


def request(blobs, run_id: str) -> student_pb2.TrainRequest:
    """Dropout needs the generators, patience the best weights, replay the order of the data."""
    texts, replay, held = (
        language_suite.put_records(blobs, records)
        for records in (
            language_suite.texts(),
            language_suite.answers(),
            language_suite.texts(4, split="test"),
        )
    )
    return language_suite.request(
        run_id,
        text_shards=[texts],
        replay_shards=[replay],
        evaluation=student_pb2.LanguageEvaluation(text_shards=[held]),
        training=language_suite.training(
            max_steps=STEPS,
            checkpoint_steps=3,
            patience=100,
            lora=language_pb2.Lora(rank=4, dropout=0.2),
        ),
    )


def test_killed_worker_goes_on_from_its_checkpoint_to_the_same_weights(running):
    whole = running.train(request(running.blobs, "whole"))[-1].result.language
    stream = running.stub.Train(request(running.blobs, "killed"), timeout=240)
    for event in stream:
        if event.progress.stage == "training" and event.progress.done >= STEPS // 2:
            break
    (worker,) = running.workers()
    os.kill(worker, signal.SIGKILL)
    events = list(stream)
    stages = [event.progress.stage for event in events]
    again = events[stages.index("loading the student") :]
    steps = [e.progress.done for e in again if e.progress.metrics]
    assert STEPS // 2 - 3 < steps[0] < STEPS  # from the last checkpoint, not from the start
    assert steps[-1] == STEPS
    assert not any("before training" in event.progress.stage for event in again)
    result = events[-1].result.language
    assert result.weights_digest == whole.weights_digest
    assert not (running.runs / suite.PROJECT / "killed" / "checkpoint").exists()
