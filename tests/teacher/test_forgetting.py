"""ForgetProject: all that the teacher holds of a project goes, and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import grpc
import pytest
from stillhouse.inference.v2 import open_inference_pb2 as oip
from stillhouse.teacher.v1 import teacher_pb2 as pb
from stillhouse.teacher.v1 import teacher_pb2_grpc

from services.common.blobs import BlobStore
from services.common.errors import NotFound
from services.common.images import Limits
from services.common.inference.images import ImageLimits
from services.common.inference.servicer import InferenceServicer
from services.teacher.inference import TeacherInference
from services.teacher.servicer import TeacherServicer
from tests import forgetting
from tests.isolating import OURS, THEIRS
from tests.support import service
from tests.teacher.image_world import MODEL, make_catalogue, teacher
from tests.teacher.language_models import write_tiny
from tests.teacher.test_isolation import SHARD, TINY, Owned, classify, fill, model, prompt


async def forget(servicer: TeacherServicer, project: str, *, dry_run: bool = False) -> int:
    request = pb.ForgetProjectRequest(project=project, dry_run=dry_run)
    return int((await servicer.ForgetProject(request, None)).count)


async def use_all(servicer: TeacherServicer, project: str, owned: Owned) -> None:
    """Have each of a project's three models in memory, one row remembered, one in the cache."""
    for request in (
        classify(project, owned.head),
        classify(project, owned.classifier),
        classify(project, MODEL, owned.image, execution=SHARD),
    ):
        reply = await servicer.Classify(request, None)
        assert reply.results[0].HasField("classification")
    item = pb.ScoreItem(prompt=prompt(), text=" fox")
    await servicer.Score(pb.ScoreRequest(model=model(project, owned.language), items=[item]), None)


async def held(
    servicer: TeacherServicer, cache: Path, project: str
) -> tuple[list[str], list[str], int]:
    """Return what is there of a project: names in memory, files in the cache, a count of all."""
    loaded = [*servicer._registry.loaded_models(), *servicer._language.loaded_models()]
    names = sorted(one.model_id for one in loaded if one.project == project)
    count = await forget(servicer, project, dry_run=True)
    return names, forgetting.files(cache / "models" / project), count


async def test_all_of_one_project_goes_and_nothing_of_another(tmp_path: Path) -> None:
    write_tiny(tmp_path / "tiny")
    async with teacher(tmp_path, entries=TINY, precision="float32") as servicer:
        owned = await fill(servicer, tmp_path)
        projects, cache = tmp_path / "blobs" / "projects", tmp_path / "cache"
        shutil.copytree(projects / THEIRS, projects / OURS)
        for project in (THEIRS, OURS):
            await use_all(servicer, project, owned)
        before, kept = [await held(servicer, cache, one) for one in (THEIRS, OURS)]
        assert len(before[1]) == len(kept[1]) > 4
        assert before[0] == ["head", "pupil", "tuned"]
        assert (before[2], kept[0], kept[2]) == (5, before[0], 5)
        assert await forget(servicer, THEIRS) == 5
        for _ in range(2):
            assert await held(servicer, cache, THEIRS) == ([], [], 0)
            assert await held(servicer, cache, OURS) == kept
            assert await forget(servicer, THEIRS) == 0
        await use_all(servicer, OURS, owned)  # what is of everybody stays


async def test_no_description_outlives_its_project(tmp_path: Path) -> None:
    """Names of classes are data too: whoever gets the project's name next must not see them."""
    async with teacher(tmp_path) as servicer:
        owned = await fill(servicer, tmp_path)
        models = TeacherInference(servicer, ImageLimits(Limits(1 << 20, 1 << 20), 16))
        protocol = InferenceServicer("teacher", models, lambda: True)
        request = oip.ModelMetadataRequest(name=f"{THEIRS}/{owned.classifier}")
        assert (await protocol.ModelMetadata(request, None)).versions  # type: ignore[arg-type]
        await forget(servicer, THEIRS)
        BlobStore(str(tmp_path / "blobs")).remove_project(THEIRS)
        with pytest.raises(NotFound):
            await protocol.ModelMetadata(request, None)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(900)
def test_a_call_that_was_killed_is_ended_by_the_next(tmp_path: Path) -> None:
    root, other = tmp_path / "cache" / "models" / "a", tmp_path / "cache" / "models" / "b"
    forgetting.fill(root)
    forgetting.fill(other, folders=2)
    kept, request = forgetting.files(other), pb.ForgetProjectRequest(project="a")
    settings = {
        "TEACHER_CATALOGUE": str(make_catalogue(tmp_path)),
        "TEACHER_PRELOAD": MODEL,
        "TEACHER_CACHE_DIR": str(tmp_path / "cache"),
        "TEACHER_THREADS": "1",
    }
    with (
        service("teacher", tmp_path, **settings) as running,
        grpc.insecure_channel(running.address) as channel,
    ):
        call = teacher_pb2_grpc.TeacherServiceStub(channel).ForgetProject.future(request)
        left = forgetting.kill_midway(root, call, running.kill)
    with (
        service("teacher", tmp_path, **settings) as again,
        grpc.insecure_channel(again.address) as channel,
    ):
        stub = teacher_pb2_grpc.TeacherServiceStub(channel)
        assert stub.ForgetProject(request, timeout=240).count == left
        assert not root.exists()
        assert stub.ForgetProject(request, timeout=240).count == 0
    assert forgetting.files(other) == kept
