"""Folders of files and metrics in a run's folder: whole or not at all, the newest found, fenced."""

from __future__ import annotations

import pytest
from stillhouse.student.v1 import student_pb2

from services.student.rundir import Fenced, RunDir


@pytest.fixture
def run(tmp_path):
    found = RunDir.of(tmp_path, "default", "a")
    found.create(student_pb2.TrainRequest(project="default", run_id="a"))
    return found


def fill(text):
    return lambda folder: (folder / "state.json").write_text(text)


def names(run):
    return sorted(path.name for path in (run.path / "checkpoint").iterdir())


def test_only_the_newest_whole_folder_stays(run):
    writer = run.next_writer()
    assert writer.newest_folder("training") is None
    writer.save_folder("training", 9, fill("nine"))
    writer.save_folder("training", 10, fill("ten"))
    writer.save_folder("other", 1, fill("one"))
    assert (writer.newest_folder("training") / "state.json").read_text() == "ten"
    assert names(run) == ["other.0000000001", "training.0000000010"]


def test_half_written_folder_is_ignored_and_later_removed(run):
    writer = run.next_writer()
    writer.save_folder("training", 1, fill("one"))

    def broken(folder):
        fill("half")(folder)
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        writer.save_folder("training", 2, broken)
    later = run.next_writer()
    assert (later.newest_folder("training") / "state.json").read_text() == "one"
    later.save_folder("training", 3, fill("three"))
    assert names(run) == ["training.0000000003"]


def test_an_old_worker_cannot_publish_a_folder(run):
    old = run.next_writer()
    new = run.next_writer()
    with pytest.raises(Fenced):
        old.save_folder("training", 5, fill("late"))
    assert new.newest_folder("training") is None


def test_metrics_come_back_with_their_event(run):
    writer = run.next_writer()
    writer.progress("training", 3, 9, {"loss": 1.25})
    writer.progress("training", 4, 9)
    (first, second), _ = run.events()
    assert dict(first.progress.metrics) == {"loss": 1.25}
    assert not second.progress.metrics
