"""Classifier jobs through the whole gateway; teacher and student answer by rule."""

from __future__ import annotations

import asyncio
import io
import json
import tarfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from stillhouse.gateway.v1 import jobs_pb2 as pb
from stillhouse.student.v1 import student_pb2

from services.common.blobs import BlobStore
from services.common.classifier_records import ClassifierRecord
from services.common.manifest import Manifest
from services.gateway.datasets import records
from services.gateway.jobs.classifier_specs import arms_of, steps_of
from tests.gateway.edge_world import ROOT, World, edge_world
from tests.gateway.image_peers import RIGHT, Student, Teacher, peers
from tests.gateway.parts import make_photo

JOBS = "/distillationJobs"
COUNTS = {"train": 12, "val": 4, "test": 8}
P = "projects/default"


@dataclass
class Lab:
    """A gateway with its engine, a dataset `pics`, and the stand-ins that it calls."""

    world: World
    teacher: Teacher
    student: Student
    blobs: BlobStore
    manifest: Manifest

    def digests(self, split: str) -> set[str]:
        return {item.digest for item in self.manifest.items if item.split == split}

    async def post(self, path: str, spec: dict[str, Any]) -> Any:
        return await self.world.post(path, {"job": {"classifier": spec}})

    async def refused(self, **change: Any) -> str:
        answer = await self.post(JOBS, {**asked(), **change})
        assert answer.status_code in (400, 404), answer.text
        return str(answer.json()["message"])

    async def done(self, spec: dict[str, Any]) -> dict[str, Any]:
        answer = await self.post(JOBS, spec)
        assert answer.status_code == 200, answer.text
        name = answer.json()["job"]["name"]
        async with asyncio.timeout(60):
            while True:
                job = (await self.world.http.get(f"/v1/{name}")).json()["job"]
                if job["state"] in ("JOB_STATE_SUCCEEDED", "JOB_STATE_FAILED"):
                    break
                await asyncio.sleep(0.03)
        assert job["state"] == "JOB_STATE_SUCCEEDED", job["error"]
        report = json.loads(self.blobs.get("default", job["report"]["digest"]))
        return {**job, "json": report}


def asked(**more: Any) -> dict[str, Any]:
    return {
        "dataset": f"{P}/datasets/pics",
        "teacher": f"{P}/models/big",
        "modelId": "small",
        "architecture": "small-cnn",
        "inputSize": 32,
        "augmentation": {"policy": "flip_crop", "views": 2},
        "training": {"epochs": 4, "batchImages": 4, "seed": "7", "patience": 3},
        **more,
    }


def archive() -> bytes:
    """A tar of two classes with their splits."""
    out, number = io.BytesIO(), 0
    with tarfile.open(fileobj=out, mode="w") as tar:
        for split, count in COUNTS.items():
            for at in range(count):
                data, number = make_photo(number), number + 1
                info = tarfile.TarInfo(f"{split}/{'ab'[at % 2]}/{number}.jpg")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


async def ready(world: World, name: str) -> None:
    while True:
        found = (await world.get(f"/datasets/{name}")).json()["dataset"]
        if found["state"] != "DATASET_STATE_CREATING":
            break
        await asyncio.sleep(0.01)
    assert found["state"] == "DATASET_STATE_READY", found


async def add(world: World, name: str, data: bytes, **more: str) -> None:
    answer = await world.http.post(f"{ROOT}/archives", content=data)
    body = {"datasetId": name, "archive": answer.json()["archive"], **more}
    assert (await world.post("/datasets", body)).status_code == 200
    await ready(world, name)


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    blobs = BlobStore(str(tmp_path / "blobs"))
    async with peers(blobs) as (teacher, student, address):
        where = {"teacher_address": address, "student_address": address}
        async with edge_world(tmp_path, **where) as world:
            await world.gateway.engine.start()
            await add(world, "pics", archive())
            manifest = await read_manifest(world)
            teacher.labels = {item.digest: item.labels[0] for item in manifest.items}
            yield Lab(world, teacher, student, blobs, manifest)
            await world.gateway.engine.stop()


async def read_manifest(world: World) -> Manifest:
    row = await asyncio.to_thread(records.get, world.gateway.store, "default", "pics")
    return Manifest.from_bytes(world.gateway.blobs.get("default", row.manifest_digest))


async def test_a_network_learns_beside_its_controls(lab: Lab) -> None:
    damaged = sorted(lab.digests("train"))[0]
    del lab.teacher.labels[damaged]
    spec = asked(controls=True, trainingSeeds=2)
    job = await lab.done(spec)
    stages = [stage["stage"] for stage in job["stages"]]
    assert stages == [
        "ingest",
        "check",
        "estimate",
        "teacher_outputs",
        "teacher_views",
        "fit",
        "publish",
    ]
    views = {digest: n for (digest, viewed), n in lab.teacher.asked.items() if viewed}
    assert views == dict.fromkeys(lab.digests("train"), 1)  # once for six runs
    plain = {digest for digest, viewed in lab.teacher.asked if not viewed}
    assert plain == lab.digests("test")

    recipes = lab.student.recipes
    told = [(r.provenance["arm"], r.training.seed, r.hard_only) for r in recipes]
    arms = ("soft_hard", "alone", "soft")
    assert told == [(arm, seed, arm == "alone") for arm in arms for seed in (7, 8)]
    assert {r.training.max_steps for r in recipes} == {11}  # 4 passes over 11 images by fours
    assert {r.training.patience for r in recipes} == {0}
    assert [r.training.soft_weight for r in recipes[4:]] == [1, 1]
    assert [r.skip_onnx for r in recipes] == [False] + [True] * 5
    assert len({tuple(s.digest for s in r.view_shards) for r in recipes}) == 1
    fit = next(one for one in job["stages"] if one["stage"] == "fit")
    assert (int(fit["total"]), fit["unit"]) == (66, "steps")

    report = job["json"]
    accuracy = {who: one["value"] for who, one in report["accuracy"].items()}
    assert accuracy == {"teacher": 1.0, **RIGHT}
    alone = report["accuracy"]["alone"]
    assert alone["low"] < 0.5 < alone["high"]
    gain = report["paired_alone"]
    assert gain["accuracy"]["value"] == 0.5
    assert gain["accuracy"]["low"] > 0
    assert gain["negative_log_likelihood"]["value"] < 0
    assert gain["expected_calibration_error"]["value"] < 0
    assert report["agreement"]["soft"]["value"] == 0.75
    assert "teacher" not in report["agreement"]
    assert report["arms"][1] == {"arm": "alone", "seeds": 2, "steps": 11, "seconds": 2.0}
    assert report["latency"]["onnx_median_ms"] == 0.5
    assert {point["run"] for point in report["curves"]} >= {"soft_hard/0", "alone/1"}
    assert job["model"] == f"{P}/models/small"
    record = ClassifierRecord.from_bytes(lab.blobs.get_ref("default", "models/small"))
    assert record.card["provenance"]["arm"] == "soft_hard"

    again = await lab.done(spec)
    assert again["report"] == job["report"]
    assert len(recipes) == 6  # found, as the views were
    assert max(n for (_, viewed), n in lab.teacher.asked.items() if viewed) == 1


async def test_what_does_not_fit_is_refused_before_any_work(lab: Lab) -> None:
    await add(lab.world, "notes", b'{"prompt": "q", "answer": "a"}', kind="DATASET_KIND_TEXTS")
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({"teacher": f"{P}/models/wide"}, ["do not fit together", "'c'"]),
        ({"teacher": f"{P}/models/many"}, ["several labels per image"]),
        ({"teacher": f"{P}/models/none"}, ["there is no model"]),
        ({"teacher": f"{P}/models/words"}, ["not an image classifier"]),
        ({"dataset": f"{P}/datasets/notes"}, ["holds texts", "needs images"]),
        ({"dataset": "projects/other/datasets/pics"}, ["not of project"]),
        ({"architecture": ""}, ["architecture: it or weights"]),
        ({"architecture": "../x"}, ["timm's name"]),
        ({"weights": "efficientnet-lite0"}, ["not a small-cnn"]),
        ({"augmentation": {"policy": "blur"}}, ["augmentation.policy", "flip_crop"]),
        ({"augmentation": {"policy": "strong", "views": 65}}, ["augmentation.views"]),
        ({"inputSize": 8}, ["input_size"]),
        ({"training": {"softWeight": 1.5}}, ["training.soft_weight"]),
        ({"training": {"batchImages": 1}}, ["batch norms"]),
        ({"trainingSeeds": 99}, ["training_seeds"]),
        ({"modelId": "wide"}, ["of the catalogue"]),
        ({"modelId": "big"}, ["would replace"]),
        (
            {"teacher": f"{P}/models/headless", "training": {"featureWeight": 1}},
            ["no feature vector"],
        ),
    ]
    for change, words in cases:
        message = await lab.refused(**change)
        assert all(word in message for word in words), (change, message)
    assert not lab.teacher.asked
    cost = await lab.post(f"{JOBS}:estimate", asked())
    assert cost.status_code == 200, cost.text
    assert int(cost.json()["itemCount"]) == COUNTS["train"] + COUNTS["test"]
    assert int(cost.json()["storedBytes"]) == 4 * 2 * 8 + 2 * 2 * 2 * 12


def test_arms_and_steps_follow_from_the_specification() -> None:
    spec = pb.ClassifierJobSpec()
    assert arms_of(spec) == ["soft_hard"]
    spec.controls = True
    assert arms_of(spec) == ["soft_hard", "alone", "soft"]
    spec.training.soft_weight = 1
    assert arms_of(spec) == ["soft_hard", "alone"]
    assert steps_of(student_pb2.ClassifierTraining(), 100) == 47  # 30 passes by 64
    assert steps_of(student_pb2.ClassifierTraining(max_steps=5), 100) == 5
