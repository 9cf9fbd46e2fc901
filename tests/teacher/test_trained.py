"""From a teacher's views to students that the teacher service serves in turn."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from stillhouse.common.v1 import items_pb2
from stillhouse.student.v1 import student_pb2
from stillhouse.teacher.v1 import teacher_pb2

from services.common.augmentation import Augmentation
from services.common.errors import InvalidInput, NotFound
from services.common.manifest import Item, Manifest
from services.common.tensors import from_message, unpack_arrays
from services.gateway.jobs import records
from services.gateway.jobs.job import Job
from services.gateway.jobs.outputs import teacher_stage, view_stage
from services.gateway.jobs.plans import TeacherPlan
from services.gateway.jobs.shard_stage import run_shards
from services.student.recipes import Surroundings, Training, train
from services.student.rundir import RunDir
from tests.gateway import stories
from tests.student.classifier_suite import message, ref, training
from tests.support import photo
from tests.teacher.image_world import CLASSES, NAME, TeacherPeers, counted, teacher

VIEWS = Augmentation("strong", views=2, seed=1)
STUDENTS = (("small-cnn", 16), ("test_resnet", 32), ("small-cnn", 24))


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


async def test_three_students_of_one_pass_are_served(tmp_path: Path) -> None:
    world = stories.make_tools(tmp_path)
    async with teacher(tmp_path) as servicer:
        tools = replace(world, peers=TeacherPeers(servicer))
        row = stories.create(tools)
        job = Job(tools, row, records.spec_of(row))
        for stage in ("teacher_views", "teacher_outputs"):
            await job.progress.begin(stage)
        splits = ("train", "train", "train", "val", "test")
        items = tuple(
            Item(f"{n}.png", tools.blobs.put("default", data), splits[n % 5], (n % 3,))
            for n, data in enumerate(photo(n, size=(40, 30)) for n in range(15))
        )
        manifest = Manifest(CLASSES, False, items)
        described = await servicer.GetModel(teacher_pb2.GetModelRequest(name=NAME), None)
        plan = TeacherPlan(
            name=NAME, digest=described.model.digest, classes=list(CLASSES), columns=[0, 1, 2]
        )
        _, before = counted()
        results = []
        for number, (architecture, size_px) in enumerate(STUDENTS):
            # As each student's job would: what exists is found.
            views = await run_shards(job, view_stage(tools, plan, VIEWS), manifest)
            plain = await run_shards(job, teacher_stage(tools, plan), manifest)
            recipe = student_pb2.ClassifierRecipe(
                data=student_pb2.TrainingData(
                    manifest=ref(tools.blobs.put("default", manifest.to_bytes())),
                    teacher_shards=[ref(d) for d in plain["digests"]],
                ),
                view_shards=[ref(d) for d in views["digests"]],
                augmentation=message(VIEWS),
                architecture=architecture,
                input_size=size_px,
                training=training(max_steps=4),
                skip_onnx=True,
            )
            results.append(fitted(tmp_path, tools.blobs, recipe, f"run-{number}"))
        # 15 images, each once as it is and once in each of two views, for all three students.
        assert counted()[1] - before == 15 * (1 + VIEWS.views)
        await check_served(servicer, tools.blobs, results[1], items)
    await stories.close(world)


def fitted(folder: Path, blobs, recipe, run_id: str):  # type: ignore[no-untyped-def]
    asked = student_pb2.TrainRequest(project="default", run_id=run_id, classifier=recipe)
    run = RunDir.of(folder / "runs", "default", run_id)
    run.create(asked)
    around = Surroundings(cache_dir=folder / "cache")
    made = Training("default", blobs, run.next_writer(), lambda: None, around)
    return train(made, asked).classifier


async def check_served(servicer, blobs, result, items) -> None:  # type: ignore[no-untyped-def]
    blobs.put_ref("default", "models/student-1", blobs.get("default", result.card.digest))
    name = "projects/default/models/student-1"
    asked = teacher_pb2.GetModelRequest(name=name)
    spec = (await servicer.GetModel(asked, None)).model.image_classifier
    assert list(spec.classes) == list(CLASSES)
    assert (spec.image_size, spec.trunk, spec.single_label) == (32, "test_resnet", True)
    listed = await servicer.ListModels(teacher_pb2.ListModelsRequest(project="default"), None)
    (model,) = [one for one in listed.models if one.name == name]
    assert model.image_classifier.image_size == 32
    arrays = unpack_arrays(blobs.get("default", result.predictions.digest))
    digests = [bytes(row).hex() for row in arrays["digests"]]
    assert digests == [item.digest for item in items if item.split == "test"]
    reply = await servicer.Classify(
        teacher_pb2.ClassifyRequest(
            model=name,
            items=[items_pb2.ImageInput(digest=digest) for digest in digests],
            execution=items_pb2.EXECUTION_SHARD,
        ),
        None,
    )
    logits = np.stack([from_message(one.classification.logits) for one in reply.results])
    np.testing.assert_allclose(logits, arrays["logits"], atol=2e-3)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"architecture": "small-cnn"}, InvalidInput, "student-2"),
        ({"classes": ["a", "a", "b"]}, InvalidInput, "not unique"),
        ({"weights": "zz"}, InvalidInput, "not a lower-case SHA-256"),
        ({"weights": "0" * 64}, NotFound, "no blob"),
        ({"input": {"size_px": 4}}, InvalidInput, "size_px"),
    ],
)
async def test_a_damaged_record_is_refused(tmp_path: Path, change, error, text) -> None:  # type: ignore[no-untyped-def]
    from safetensors.torch import save

    from services.torch_common.timm_models import build_timm

    async with teacher(tmp_path) as servicer:
        blobs = stories.BlobStore(str(tmp_path / "blobs"))
        weights = blobs.put("default", save(build_timm("test_resnet", 3).state_dict()))
        record = {
            "kind": "image_classifier",
            "architecture": "test_resnet",
            "classes": ["a", "b", "c"],
            "single_label": True,
            "weights": weights,
            "input": {"size_px": 32},
        }
        asked = teacher_pb2.GetModelRequest(name="projects/default/models/student-2")
        blobs.put_ref("default", "models/student-2", json.dumps(record | change).encode())
        with pytest.raises(error, match=text):
            await servicer.GetModel(asked, None)
        blobs.put_ref("default", "models/student-2", json.dumps(record).encode())
        assert (await servicer.GetModel(asked, None)).model.digest
