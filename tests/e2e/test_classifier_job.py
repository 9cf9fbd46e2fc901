"""Classifier jobs through real processes: a teacher of real photos becomes tiny networks, and is
asked once for all of them."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

import grpc
import pytest
from stillhouse.common.v1 import items_pb2
from stillhouse.gateway.v1 import jobs_pb2
from stillhouse.teacher.v1 import teacher_pb2, teacher_pb2_grpc

from tests.e2e.suite import LANGUAGE_SERVICES, PROJECT, Suite, suite
from tests.support import free_port, photo

pytestmark = pytest.mark.e2e
STEPS, VIEWS = 6, 2


def classifier(**more: object) -> jobs_pb2.DistillationJob:
    spec = jobs_pb2.ClassifierJobSpec(
        dataset=f"{PROJECT}/datasets/fruit",
        teacher=f"{PROJECT}/models/fruit-teacher",
        architecture="small-cnn",
        input_size=32,
        augmentation=items_pb2.Augmentation(policy="flip_crop", views=VIEWS),
        controls=True,
    )
    spec.training.max_steps, spec.training.batch_images = STEPS, 8
    for name, value in more.items():
        setattr(spec, name, value)
    return jobs_pb2.DistillationJob(classifier=spec)


@dataclass(frozen=True)
class Passes:
    """What the teacher service has counted since it started."""

    calls: int
    """Of Classify."""
    images: int
    """Through any of its models, one with all its views counted once."""


@dataclass(frozen=True)
class Ran:
    """A suite in which all three arms have been trained for a few steps."""

    running: Suite
    job: jobs_pb2.DistillationJob
    metrics_port: int
    before: Passes
    """Before the job."""

    def passes(self) -> Passes:
        """Read the teacher's metrics page."""
        return passes(self.metrics_port)


def passes(port: int) -> Passes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
        text = page.read().decode()

    def total(pattern: str) -> int:
        return round(sum(float(one) for one in re.findall(pattern + r" ([0-9.e+]+)$", text, re.M)))

    calls = total(r'^grpc_server_call_duration_seconds_count\{[^}]*Classify"[^}]*\}')
    return Passes(calls, total(r"^stillhouse_batch_items_sum\{[^}]*\}"))


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEACHER_METRICS_PORT", str(port))
        patch.setenv("TEACHER_CANARY_S", "3600")  # so that jobs alone are counted
        folder = tmp_path_factory.mktemp("classifier")
        with suite(folder, threads=1, services=LANGUAGE_SERVICES) as running:
            running.prepare()
            before = passes(port)
            yield Ran(running, running.finish(running.create(classifier())), port, before)


def test_the_teacher_is_asked_once_for_three_students(ran: Ran) -> None:
    first = ran.passes()
    report = ran.running.read_json(ran.job.report.digest)
    items = report["items"]
    assert isinstance(items, dict)
    asked = items["test"] + items["train"]
    # What the estimate measures its speed on comes on top.
    assert asked <= first.images - ran.before.images <= 2 * asked
    assert first.calls > ran.before.calls
    for more in (
        {"model_id": "second", "input_size": 48},
        {"model_id": "third", "controls": False},
    ):
        job = ran.running.finish(ran.running.create(classifier(**more)))
        assert job.model.endswith(str(more["model_id"]))
    assert ran.passes() == first
    other = classifier(model_id="other", controls=False)
    other.classifier.augmentation.seed = 1
    ran.running.finish(ran.running.create(other))
    assert ran.passes().calls > first.calls  # other views are asked for


def test_the_network_is_served_at_once(ran: Ran) -> None:
    running, job = ran.running, ran.job
    assert job.model == f"{PROJECT}/models/fruit-classifier"
    with running.channel("teacher") as channel:
        stub = teacher_pb2_grpc.TeacherServiceStub(channel)
        model = stub.GetModel(teacher_pb2.GetModelRequest(name=job.model), timeout=60).model
        item = items_pb2.ImageInput(item_id="one", data=photo(1))
        request = teacher_pb2.ClassifyRequest(model=job.model, items=[item])
        (result,) = stub.Classify(request, timeout=60).results
    assert list(result.classification.logits.shape) == [len(model.image_classifier.classes)]


def test_the_report_has_every_arm_on_the_same_images(ran: Ran) -> None:
    running, job = ran.running, ran.job
    report = running.read_json(job.report.digest)
    accuracy, arms = report["accuracy"], report["arms"]
    assert isinstance(accuracy, dict)
    assert list(accuracy) == ["alone", "soft", "soft_hard", "teacher"]  # JSON is sorted
    assert {one["count"] for one in accuracy.values()} == {report["test_images"]}
    assert all(0 <= one["low"] <= one["value"] <= one["high"] <= 1 for one in accuracy.values())
    assert accuracy["teacher"]["value"] > 0.5
    assert isinstance(arms, list)
    assert [arm["arm"] for arm in arms] == ["soft_hard", "alone", "soft"]
    assert {arm["steps"] for arm in arms} == {STEPS}


def test_an_unknown_architecture_is_refused_before_training(ran: Ran) -> None:
    running = ran.running
    name = running.create(classifier(architecture="smal-cnn", controls=False))
    with pytest.raises(AssertionError, match="near names: small-cnn"):
        running.finish(name)
    with pytest.raises(grpc.RpcError, match="weights"):
        running.create(classifier(architecture="", controls=False))
