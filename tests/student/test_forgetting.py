"""What the student service removes of a job's runs, and of a project."""

from __future__ import annotations

from pathlib import Path

import pytest
from stillhouse.student.v1 import student_pb2

from services.common.blobs import BlobStore
from services.common.errors import InvalidInput
from services.common.model_cache import folder_of, forget_files
from services.student.library import Library
from services.student.runs import RunManager
from services.student.settings import StudentSettings
from tests import forgetting
from tests.student import suite


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    root = tmp_path / "runs"
    for project, run in (
        ("a", "concept-1-x"),
        ("a", "concept-1-y"),
        ("a", "concept-12-x"),
        ("b", "r"),
    ):
        (root / project / run / "checkpoints").mkdir(parents=True)
        (root / project / run / "checkpoints" / "model").write_bytes(b"x")
    return root


async def test_runs_go_by_job_or_by_project(runs: Path) -> None:
    manager = RunManager(StudentSettings(runs_dir=runs))
    assert await manager.remove("a", "concept-1-", dry_run=True) == 2
    assert await manager.remove("a", "concept-1-") == 2
    assert [one.name for one in (runs / "a").iterdir()] == ["concept-12-x"]
    assert await manager.remove("a", "") == 1
    assert [one.name for one in runs.iterdir()] == ["b"]
    assert await manager.remove("a", "") == 0
    for project, prefix in (("..", ""), ("a/../b", ""), ("a", "../b"), ("", "")):
        with pytest.raises(InvalidInput):
            await manager.remove(project, prefix)
    assert (runs / "b" / "r" / "checkpoints" / "model").exists()


@pytest.mark.slow
@pytest.mark.faults
@pytest.mark.timeout(900)
def test_a_call_that_was_killed_is_ended_by_the_next(tmp_path: Path) -> None:
    root, other = tmp_path / "runs" / "a", tmp_path / "runs" / "b"
    forgetting.fill(root)
    forgetting.fill(other, folders=2)
    kept, request = forgetting.files(other), student_pb2.RemoveRunsRequest(project="a")
    with suite.service(tmp_path, cache_dir=str(tmp_path / "cache")) as running:
        left = forgetting.kill_midway(root, running.stub.RemoveRuns.future(request), running.kill)
    half = [one for one in root.iterdir() if len(list(one.iterdir())) < forgetting.FILES]
    assert all(one.name.startswith(".") for one in half)  # and none passes for a run
    with suite.service(tmp_path, cache_dir=str(tmp_path / "cache")) as again:
        assert again.stub.RemoveRuns(request, timeout=240).run_count == left
        assert not root.exists()
        assert again.stub.RemoveRuns(request, timeout=240).run_count == 0
    assert forgetting.files(other) == kept


async def test_what_a_kill_has_left_of_runs_goes_with_the_next_call(runs: Path) -> None:
    (runs / "a" / ".going-1").mkdir()
    manager = RunManager(StudentSettings(runs_dir=runs))
    assert await manager.remove("a", "", dry_run=True) == 4
    assert await manager.remove("a", "concept-12-") == 1
    assert sorted(one.name for one in (runs / "a").iterdir()) == ["concept-1-x", "concept-1-y"]


def test_memory_of_one_project_goes(tmp_path: Path) -> None:
    library = Library(BlobStore(str(tmp_path)), students=8, tables=8)
    for project in ("a", "b"):
        library._students.get((project, "w", "c"), object)  # type: ignore[arg-type]
        library._designs.get(((project, b"data"), b"folds"), object)  # type: ignore[arg-type]
    assert library.forget("a", dry_run=True) == 2
    assert library.forget("a") == 2
    assert library.forget("a") == 0
    assert library.forget("b", dry_run=True) == 2


def test_files_of_one_project_go(tmp_path: Path) -> None:
    files = {"model.safetensors": "0" * 64}
    for project in ("a", "b"):
        folder_of(tmp_path, project, files).mkdir(parents=True)
    assert folder_of(tmp_path, "a", files) != folder_of(tmp_path, "b", files)
    assert forget_files(tmp_path, "a", dry_run=True) == 1
    assert forget_files(tmp_path, "a") == 1
    assert forget_files(tmp_path, "a") == 0
    assert folder_of(tmp_path, "b", files).exists()
