"""Budgets of time: real passes of random weights are timed, in this process.

Where the outcome hangs on which shape is faster, the clock is replaced by one that goes by size:
the passes run, but a busy machine decides nothing.
"""

from __future__ import annotations

import json
import re

import pytest
import torch
from stillhouse.student.v1 import student_pb2

from services.common.errors import InvalidInput
from services.student.pruning.cut import with_random_weights
from services.student.pruning.shape import CUT_SIZES
from services.student.pruning.stopwatch import Stopwatch
from services.student.recipes import Surroundings, Training, train
from services.student.rundir import RunDir
from tests.student import language_suite as suite
from tests.student import pruning_suite

pytestmark = pytest.mark.usefixtures("one_thread")

LAYERS = 16


@pytest.fixture(scope="module")
def clock():
    """A millisecond for a thousand parameters."""
    real = Stopwatch._measured

    def measured(self, shape):
        assert real(self, shape) > 0
        return shape.parameters / 1000

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stopwatch, "_measured", measured)
        yield


@pytest.fixture(scope="module")
def run(home, blobs, clock):
    """Measure within a time; gives the result and the stages of all workers of the run."""
    around = Surroundings(
        cache_dir=home / "cache", catalogue=suite.make_catalogue(home, layers=LAYERS)
    )
    texts = suite.put_records(blobs, suite.texts())

    def go(run_id: str, max_latency_ms: float, precision: str = ""):
        budget = student_pb2.PruneBudget(max_latency_ms=max_latency_ms, precision=precision)
        recipe = student_pb2.ImportanceRecipe(
            student=suite.MODEL, text_shards=[texts], sequence_length=32, budget=budget
        )
        asked = student_pb2.TrainRequest(project=suite.PROJECT, run_id=run_id, importance=recipe)
        folder = RunDir.of(home / "runs", suite.PROJECT, run_id)
        folder.create(asked)
        made = Training(suite.PROJECT, blobs, folder.next_writer(), lambda: None, around)
        found = train(made, asked).importance
        return found, [event.progress.stage for event in folder.events()[0]]

    return go


@pytest.fixture(scope="module")
def bounds(run):
    """What the smallest shape and the whole model take, as the errors say."""
    found = []
    for name, asked in (("fast", 1e-6), ("slow", 1e9)):
        with pytest.raises(InvalidInput, match="budget.max_latency_ms") as caught:
            run(name, asked)
        found.append(float(re.search(r"takes ([0-9.e+]+) ms", caught.value.message).group(1)))
        assert caught.value.field == "budget.max_latency_ms"
    assert "nothing is to be cut" in caught.value.message
    assert 0 < 2 * found[0] < found[1]
    return found


def test_candidates_are_as_fast_as_asked_for(run, blobs, bounds):
    asked = sum(bounds) / 2
    found, stages = run("timed", asked)
    report = json.loads(blobs.get(suite.PROJECT, found.report.digest))
    assert found.candidates
    for one, told in zip(found.candidates, report["candidates"], strict=True):
        assert 0 < one.latency_ms == told["latency_ms"] <= asked
        assert one.parameters < report["shape"]["parameters"]
    latency = report["latency"]
    assert latency["whole_model_ms"] > asked
    assert (latency["tokens"], latency["batch"]) == (suite.CONTEXT, 1)
    assert (latency["device"], latency["threads"]) == ("cpu", 1)
    assert latency["device_name"]
    assert report["budget"] == {"max_latency_ms": pytest.approx(asked)}
    assert 2 < latency["shapes_measured"] <= 23
    assert stages.count("timing shapes") == latency["shapes_measured"]
    again, stages = run("timed", asked)  # a worker that takes over times nothing again
    assert again == found
    assert stages.count("timing shapes") == latency["shapes_measured"]


def test_the_precision_is_what_is_timed(run, blobs, bounds):
    found, _ = run("halved", sum(bounds) / 2, "bfloat16")
    report = json.loads(blobs.get(suite.PROJECT, found.report.digest))
    assert report["latency"]["precision"] == "bfloat16"


def test_the_shape_that_is_timed_is_the_shape_asked_for(monkeypatch):
    timed = []

    def made(model, shape, seed):
        timed.append(with_random_weights(model, shape, seed))
        return timed[-1]

    monkeypatch.setattr("services.student.pruning.stopwatch.with_random_weights", made)
    model = pruning_suite.make_model()
    watch = Stopwatch(model, torch.bfloat16)
    shape = watch.base.resized(layers=1, hidden_size=16)
    assert watch(shape) == watch(shape) > 0
    (one,) = timed
    assert sum(weight.numel() for weight in one.parameters()) == shape.parameters
    assert {weight.dtype for weight in one.parameters()} == {torch.bfloat16}
    arrays = watch.to_arrays()
    assert arrays["sizes"].tolist() == [[getattr(shape, name) for name in CUT_SIZES]]
    other = Stopwatch(model, torch.bfloat16)
    other.recall(arrays)
    assert other(shape) == watch(shape)
    assert len(timed) == 1
