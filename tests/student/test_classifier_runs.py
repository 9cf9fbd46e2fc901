"""Classifier training in a real worker: killed in the middle, it ends with the same weights."""

from __future__ import annotations

import os
import signal

import grpc
import pytest

from tests.student import classifier_suite, suite

pytestmark = [pytest.mark.slow, pytest.mark.faults]
STEPS = 60


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    home = tmp_path_factory.mktemp("classifier-runs")
    with suite.service(home, threads="1", cache_dir=str(home / "cache")) as service:
        yield service


def request(data, run_id: str):
    options = classifier_suite.training(max_steps=STEPS, checkpoint_steps=3, patience=100)
    return classifier_suite.request(data, run_id, training=options, skip_onnx=False)


def test_killed_worker_goes_on_from_its_checkpoint_to_the_same_weights(running):
    data = classifier_suite.make_data(running.blobs)
    whole = running.train(request(data, "whole"))[-1].result.classifier
    stream = running.stub.Train(request(data, "killed"), timeout=240)
    for event in stream:
        if event.progress.stage == "training" and event.progress.done >= STEPS // 2:
            break
    (worker,) = running.workers()
    os.kill(worker, signal.SIGKILL)
    events = list(stream)
    stages = [event.progress.stage for event in events]
    again = events[stages.index("building the student") :]
    steps = [e.progress.done for e in again if e.progress.metrics]
    assert STEPS // 2 - 3 < steps[0] < STEPS  # from the last checkpoint, not from the start
    assert steps[-1] == STEPS
    result = events[-1].result.classifier
    assert result.weights.digest == whole.weights.digest
    assert result.onnx.digest == whole.onnx.digest
    assert not (running.runs / suite.PROJECT / "killed" / "checkpoint").exists()


def test_a_bad_recipe_is_refused_by_the_call_and_an_unknown_network_by_the_run(running):
    data = classifier_suite.make_data(running.blobs)
    with pytest.raises(grpc.RpcError) as caught:
        running.train(classifier_suite.request(data, "bad", view_shards=[]))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert suite.violations(caught.value) == ["view_shards"]
    last = running.train(classifier_suite.request(data, "odd", architecture="resnt18"))[-1]
    assert suite.status_code(last.error) == grpc.StatusCode.INVALID_ARGUMENT
    assert "resnet18" in last.error.message
