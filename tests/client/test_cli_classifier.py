"""`stillhouse distill classifier`: its specification, its tables, its errors."""

from __future__ import annotations

from pathlib import Path

import pytest
from stillhouse.common.v1 import items_pb2
from stillhouse.gateway.v1 import jobs_pb2
from stillhouse.student.v1 import student_pb2

from tests.client import cli
from tests.client.fake_gateway import World

Capture = pytest.CaptureFixture[str]
CLASSIFIER = ("distill", "classifier", "--dataset", "pets", "--teacher", "big")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def test_a_classifier_job_is_what_its_flags_say(capsys: Capture, gateway: World) -> None:
    gateway.job_kind = "classifier"
    flags = (
        *("--architecture", "resnet18", "--weights", "mine", "--input-size", "96"),
        *("--policy", "strong", "--views", "8", "--view-seed", "3", "--temperature", "2"),
        *("--soft-weight", "0.5", "--feature-weight", "0.1", "--steps", "40", "--batch", "16"),
        *("--learning-rate", "1e-2", "--warmup", "0.1", "--weight-decay", "0.01"),
        *("--precision", "float32", "--seed", "7", "--patience", "2", "--checkpoint-steps", "5"),
        *("--controls", "--training-seeds", "2", "--model", "small"),
    )
    result = cli.run(capsys, *CLASSIFIER, *flags, "--address", gateway.address)
    assert result.code == 0, result.err
    sent = gateway.last(jobs_pb2.CreateDistillationJobRequest).job.classifier
    assert sent == jobs_pb2.ClassifierJobSpec(
        dataset="projects/default/datasets/pets",
        teacher="projects/default/models/big",
        model_id="small",
        architecture="resnet18",
        weights="mine",
        input_size=96,
        augmentation=items_pb2.Augmentation(policy="strong", views=8, seed=3),
        training=student_pb2.ClassifierTraining(
            max_steps=40,
            batch_images=16,
            learning_rate=1e-2,
            warmup_share=0.1,
            weight_decay=0.01,
            temperature=2,
            soft_weight=0.5,
            feature_weight=0.1,
            precision="float32",
            seed=7,
            patience=2,
            checkpoint_steps=5,
        ),
        controls=True,
        training_seeds=2,
    )
    for text in (
        "pets, big",
        "teacher and labels",
        "labels alone",
        "0.800 [0.750, 0.850]",
        "0.100 [0.020, 0.180]",
        "agrees with the teacher",
        "23,800",
        "0.41 ms",
    ):
        assert text in result.out


def test_a_job_is_estimated_followed_as_json_and_reported(
    capsys: Capture, gateway: World, tmp_path: Path
) -> None:
    gateway.job_kind = "classifier"
    command = (*CLASSIFIER, "--architecture", "small-cnn", "--address", gateway.address)
    dry = cli.run(capsys, *command, "--dry-run")
    assert dry.code == 0, dry.err
    assert "10 (4 in the cache)" in dry.out
    assert "concepts" not in dry.out
    told = cli.run(capsys, *command, "--json")
    assert told.code == 0, told.err
    assert told.json["classifier"]["dataset"] == "projects/default/datasets/pets"
    sent = gateway.last(jobs_pb2.CreateDistillationJobRequest).job.classifier
    assert sent.augmentation == items_pb2.Augmentation(policy="flip_crop", views=4)
    flags = ("--out", str(tmp_path / "out"), "--address", gateway.address)
    written = cli.run(capsys, "jobs", "report", "job-1", *flags)
    assert written.code == 0, written.err
    page = (tmp_path / "out/report.html").read_text()
    assert "labels alone" in page
    assert "beyond labels alone, paired by seed and image" in page


@pytest.mark.parametrize(
    ("flags", "texts"),
    [
        ((), ("--architecture or --weights is needed", "small-cnn")),
        (("--weights", "w", "--steps", "2", "--epochs", "1"), ("exclude one",)),
        (("--weights", "w", "--policy", "blur"), ("blur",)),
    ],
)
def test_errors_say_what_to_do(
    capsys: Capture, gateway: World, flags: tuple[str, ...], texts: tuple[str, ...]
) -> None:
    result = cli.run(capsys, *CLASSIFIER, *flags, "--address", gateway.address)
    assert result.code == 2
    assert all(text in result.err for text in texts), result.err
