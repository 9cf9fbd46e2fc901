"""Fits side by side: the same bytes however many run at a time, and what others can use again."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch
from stillhouse.student.v1 import student_pb2

from services.common.blobs import BlobStore
from services.student.concept_recipe import fit_concept_student
from services.student.recipes import Training
from services.student.rundir import RunDir
from services.student.side_by_side import one_core, side_by_side
from tests.student import suite

Fitted = student_pb2.ConceptStudentResult
PROBES = ("sparse-probe", "dense-probe")


@pytest.fixture
def threads() -> Iterator[int]:
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def fit(folder: Path, data: suite.Data, threads: int, **options: object) -> Fitted:
    """Run the recipe in this process, as a worker with so many threads does."""
    request = suite.concept_request(data, f"run-{threads}-{len(options)}", **options)
    run = RunDir.of(folder / "runs", suite.PROJECT, request.run_id)
    run.create(request)
    training = Training(
        suite.PROJECT, BlobStore(str(folder / "blobs")), run.next_writer(), lambda: None
    )
    torch.set_num_threads(threads)
    return fit_concept_student(training, request.concept)


def probes(folder: Path) -> dict[str, list[str]]:
    """The probes that are kept for other runs."""
    stages = folder / "blobs/projects" / suite.PROJECT / "refs/stages"
    return {name: sorted(path.name for path in stages.glob(f"fit-{name}/*")) for name in PROBES}


@pytest.mark.parametrize("options", [{}, {"l1": 1e-3}])
def test_students_and_reports_do_not_depend_on_the_number_of_threads(
    tmp_path: Path, threads: int, options: dict[str, float]
) -> None:
    found = []
    for number in (1, 3):
        folder = tmp_path / str(number)
        data = suite.make_data(BlobStore(str(folder / "blobs")))
        found.append(fit(folder, data, number, **options))
        assert torch.get_num_threads() == number
    assert found[0] == found[1]


def test_a_job_with_other_words_finds_the_probes_and_one_with_another_seed_does_not(
    tmp_path: Path, threads: int
) -> None:
    blobs = BlobStore(str(tmp_path / "blobs"))
    data = suite.make_data(blobs)
    first = fit(tmp_path, data, 2)
    kept = probes(tmp_path)
    assert [len(kept[name]) for name in PROBES] == [1, 1]
    data.words = [f"other {word}" for word in data.words]
    second = fit(tmp_path, data, 2, control_draws=-1)
    assert probes(tmp_path) == kept
    assert second.student.card_digest != first.student.card_digest
    reports = [json.loads(blobs.get(suite.PROJECT, one.report.digest)) for one in (first, second)]
    for name in ("sparse_probe", "dense_probe"):
        assert reports[0][name] == reports[1][name]
    fit(tmp_path, data, 2, control_draws=-1, seed=4)
    assert [len(probes(tmp_path)[name]) for name in PROBES] == [1, 2]


def test_what_is_kept_may_be_lost_or_damaged(tmp_path: Path, threads: int) -> None:
    data = suite.make_data(BlobStore(str(tmp_path / "blobs")))
    first = fit(tmp_path, data, 2)
    for name in PROBES:
        stages = tmp_path / "blobs/projects" / suite.PROJECT / "refs/stages"
        (ref,) = stages.glob(f"fit-{name}/*")
        ref.write_bytes(b"\xff" if name == "dense-probe" else b"0" * 64)
    assert fit(tmp_path, data, 2, seed=0) == first


def test_each_fit_has_one_core_and_all_are_counted(threads: int) -> None:
    told: list[tuple[str, int, int]] = []
    torch.set_num_threads(3)
    with one_core() as number:
        assert (number, torch.get_num_threads()) == (3, 1)
        with side_by_side(number, lambda *counts: told.append(counts)) as started:
            futures = [started.start(f"fit {n}", torch.get_num_threads) for n in range(5)]
        assert [one.result() for one in futures] == [1] * 5
    assert torch.get_num_threads() == 3
    assert [what for what, _, _ in told] == [f"fit {n}" for n in range(5)]
    assert all(0 <= done < started <= 5 for _, done, started in told)


def test_where_one_fails_those_that_wait_are_dropped(threads: int) -> None:
    last_is_dropped = threading.Event()
    rest: list[Future[bool]] = []

    def fail() -> None:
        raise ValueError("not finite")

    def run() -> None:
        with side_by_side(1, lambda *_: None) as started:
            first = started.start("fails", fail)
            rest.extend(started.start("waits", lambda: last_is_dropped.wait(10)) for _ in range(5))
            rest[-1].add_done_callback(lambda _: last_is_dropped.set())
            first.result()

    with pytest.raises(ValueError, match="not finite"):
        run()
    assert [one.cancelled() for one in rest[1:]] == [True] * 4
