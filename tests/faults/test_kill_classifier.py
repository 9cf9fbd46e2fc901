"""kill -9 of teacher, student and gateway in every stage of a classifier job: the same network
comes out, from the same answers of the teacher."""

from __future__ import annotations

from pathlib import Path

import pytest
from stillhouse.common.v1 import items_pb2
from stillhouse.gateway.v1 import jobs_pb2

from services.common.blobs import BlobStore
from services.common.classifier_records import ClassifierRecord
from tests.e2e.suite import LANGUAGE_SERVICES, PROJECT, Suite, suite
from tests.faults.killing import in_stage, restart

pytestmark = [pytest.mark.e2e, pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(1800)]
_STEPS = 200
_IMAGES = 120


def _job() -> jobs_pb2.DistillationJob:
    spec = jobs_pb2.ClassifierJobSpec(
        dataset=f"{PROJECT}/datasets/fruit",
        teacher=f"{PROJECT}/models/fruit-teacher",
        architecture="small-cnn",
        input_size=32,
        augmentation=items_pb2.Augmentation(policy="flip_crop", views=2),
        model_id="small",
    )
    spec.training.max_steps, spec.training.batch_images = _STEPS, 16
    spec.training.checkpoint_steps = 5
    return jobs_pb2.DistillationJob(classifier=spec)


def _outcome(running: Suite, name: str) -> tuple[str, object]:
    """The weights, and how right they are."""
    job = running.finish(name, timeout_s=900)
    report = running.read_json(job.report.digest)
    record = BlobStore(str(running.folder / "blobs")).get_ref("default", "models/small")
    return ClassifierRecord.from_bytes(record).weights, report["accuracy"]


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, object]:
    """What a job gives that nothing disturbs."""
    with suite(tmp_path_factory.mktemp("calm"), threads=1, services=LANGUAGE_SERVICES) as running:
        running.prepare(_IMAGES)
        return _outcome(running, running.create(_job()))


@pytest.mark.parametrize("service", ["teacher", "student", "gateway"])
def test_a_classifier_job_survives_a_death_in_every_stage(
    tmp_path: Path, calm: tuple[str, object], service: str
) -> None:
    with suite(tmp_path, threads=1, services=LANGUAGE_SERVICES) as rough:
        rough.prepare(_IMAGES)
        name = rough.create(_job())
        for stage, steps in (
            ("teacher_outputs", 0),
            ("teacher_views", 1),
            ("fit", 1),
            ("fit", 120),
        ):
            found = in_stage(rough, name, stage, steps=steps)
            # A stage that needs nothing of the service may be over before it is back.
            assert found or stage != "fit" or service != "student", stage
            restart(rough, service)
        assert _outcome(rough, name) == calm
