"""The command line: help of every command, pure JSON, exit codes, texts that help."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import typer
from stillhouse.gateway.v1 import datasets_pb2, jobs_pb2, students_pb2
from stillhouse.student.v1 import student_pb2
from stillhouse_client.cli import app

from tests.client import cli
from tests.client.fake_gateway import World
from tests.support import photo

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def commands() -> Iterator[tuple[str, ...]]:
    """Yield the path of every group and command."""

    def walk(command: object, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        yield path
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk(inner, (*path, name))

    yield from walk(typer.main.get_command(app), ())


ALL = list(commands())
LEAVES = [
    ("datasets", "list"),
    ("models", "list"),
    ("jobs", "list"),
    ("jobs", "show", "job-1"),
    ("jobs", "cancel", "job-1"),
    ("students", "list"),
    ("students", "show", "fruit"),
    ("students", "log", "fruit"),
    ("students", "compare", "fruit", "1", "2"),
    ("students", "undo", "fruit"),
    ("students", "promote", "fruit"),
    ("students", "redo", "fruit"),
    ("students", "checkout", "fruit", "2"),
    ("students", "rename", "fruit", "2", "more peel"),
    ("students", "evaluate", "fruit"),
    ("students", "concepts", "fruit", "--word", "waxy"),
    ("datasets", "correct", "fruit", "--name", "fruit-2", "--item", "a.jpg=Apple"),
    ("students", "tune", "fruit", "--class", "Apple", "--up", "green"),
    ("distill", "concept", "--dataset", "fruit", "--teacher", "t"),
    ("distill", "concept", "--dataset", "fruit", "--teacher", "t", "--dry-run"),
    ("distill", "concept", "--dataset", "fruit", "--teacher", "t", "--detach"),
    ("distill", "teacher-head", "--dataset", "fruit"),
    ("datasets", "add", "builtin:fruit-fine"),
    ("datasets", "add", "file:///notes.jsonl"),
    ("jobs", "samples", "job-1"),
    ("models", "show", "tiny"),
    ("models", "generate", "tiny", "--prompt", "The sky"),
    ("models", "download", "tiny", "files"),
    ("distill", "language", "--dataset", "d", "--student", "tiny", "--mode", "supervised"),
    ("distill", "language", "--dataset", "d", "--student", "tiny", "--teacher", "t", "--dry-run"),
]


def test_the_tree_has_what_the_readme_names() -> None:
    expected = {
        "up down status demo",
        "datasets add|datasets list|datasets show|models list",
        "distill concept|distill teacher-head|jobs list|jobs show|jobs watch|jobs cancel",
        "students list|students show|students explain|students tune|students undo|students log",
        "students compare|students promote|students predict|students export",
    }
    names = {" ".join(path) for path in ALL}
    for group in expected:
        for name in group.split("|") if "|" in group else group.split():
            assert name in names


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_command_explains_itself(capsys: Capture, path: tuple[str, ...]) -> None:
    result = cli.run(capsys, *path, "--help")
    assert result.code == 0
    assert "Usage" in result.out


@pytest.mark.parametrize("command", LEAVES, ids=" ".join)
def test_json_is_all_of_standard_output(
    capsys: Capture, gateway: World, command: tuple[str, ...]
) -> None:
    result = cli.run(capsys, *command, "--json", "--address", gateway.address)
    assert result.code == 0, result.err
    assert result.json is not None


@pytest.mark.parametrize("command", LEAVES, ids=" ".join)
def test_people_get_text(capsys: Capture, gateway: World, command: tuple[str, ...]) -> None:
    result = cli.run(capsys, *command, "--address", gateway.address)
    assert result.code == 0, result.err
    assert result.out.strip()


def test_a_tuning_reads_as_a_sentence(capsys: Capture, gateway: World) -> None:
    flags = ("--class", "Pink-Lady", "--up", "red skin", "--down", "green", "--factor", "2")
    result = cli.run(capsys, "students", "tune", "fruit", *flags, "--address", gateway.address)
    assert 'Pink-Lady: "red skin" 0.41 -> 0.97 (box 0.82 ... 1.23).' in result.out
    assert "Out of fold: recall of Pink-Lady +0.031 [0.004, 0.058]" in result.out
    assert "random edits of that size: recall of Pink-Lady -0.001 [-0.010, 0.008]" in result.out
    assert "helps Pink-Lady, hurts Apple" in result.out
    sent = gateway.last(students_pb2.TuneStudentRequest)
    assert [e.direction for e in sent.edits] == [
        student_pb2.DIRECTION_UP,
        student_pb2.DIRECTION_DOWN,
    ]
    assert sent.request_id


@pytest.mark.parametrize(
    ("command", "code", "texts"),
    [
        (("students", "show", "friut"), 3, ("did you mean 'fruit'",)),
        (("jobs", "show", "job-2"), 3, ("did you mean 'job-1'",)),
        (("datasets", "show", "nothing"), 3, ("no datasets yet",)),
        (("students", "show", "fruit", "--class", "Pink-Lad"), 3, ("'Pink-Lady'",)),
        (
            ("students", "tune", "fruit", "--class", "Appel", "--up", "green"),
            2,
            ("did you mean 'Apple'",),
        ),
        (
            ("students", "tune", "fruit", "--class", "Apple", "--up", "red skn"),
            2,
            ("did you mean 'red skin'",),
        ),
        (("students", "tune", "fruit", "--class", "Apple"), 2, ("nothing to tune", "--up")),
        (
            ("students", "tune", "fruit", "--class", "Apple", "--up", "green", "--factor", "1"),
            2,
            ("--factor 1",),
        ),
        (("students", "show", "projects/default/datasets/x"), 2, ("is not the name of",)),
        (("students", "predict", "fruit", "nowhere"), 2, ("nowhere does not exist",)),
        (("datasets", "add", "nowhere"), 2, ("nowhere does not exist",)),
        (("datasets", "add", "file:///missing"), 2, ("no images",)),
        (
            ("distill", "concept", "--dataset", "d", "--teacher", "t", "--nec", "9", "--l1", "1"),
            2,
            ("exclude one another",),
        ),
    ],
)
def test_errors_say_what_to_do(
    capsys: Capture, gateway: World, command: tuple[str, ...], code: int, texts: tuple[str, ...]
) -> None:
    plain = cli.run(capsys, *command, "--address", gateway.address)
    assert plain.code == code, plain.err
    assert plain.out == ""
    for text in texts:
        assert text in plain.err
    as_json = cli.run(capsys, *command, "--address", gateway.address, "--json")
    assert as_json.code == code
    assert as_json.json["error"]["message"]


def test_a_wrong_flag_is_met_with_the_right_one(capsys: Capture) -> None:
    result = cli.run(capsys, "students", "list", "--jsno")
    assert result.code == 2
    assert "--json" in result.err


def test_a_server_that_is_away_is_said_to_be(capsys: Capture) -> None:
    result = cli.run(capsys, "students", "list", "--address", "127.0.0.1:1")
    assert result.code == 4
    assert "no answer from 127.0.0.1:1" in result.err
    assert "stillhouse up" in result.err


def test_a_failed_job_fails_the_command(capsys: Capture, gateway: World) -> None:
    gateway.job_state = jobs_pb2.JOB_STATE_FAILED
    command = ("distill", "concept", "--dataset", "fruit", "--teacher", "t")
    plain = cli.run(capsys, *command, "--address", gateway.address)
    assert plain.code == 1
    assert "no fit" in plain.err
    as_json = cli.run(capsys, *command, "--address", gateway.address, "--json")
    assert as_json.code == 1
    assert as_json.json["error"]["message"] == "no fit"


def test_watch_prints_a_json_line_per_event(capsys: Capture, gateway: World) -> None:
    result = cli.run(capsys, "jobs", "watch", "job-1", "--json", "--address", gateway.address)
    events = [json.loads(line) for line in result.out.splitlines()]
    assert [e["resume_token"] for e in events] == ["5", "10"]
    assert events[-1]["job"]["state"] == "JOB_STATE_SUCCEEDED"


def test_concepts_come_from_a_file_without_comments(
    capsys: Capture, gateway: World, tmp_path: Path
) -> None:
    words = tmp_path / "words.txt"
    words.write_text("# mine\nred skin\n\ngreen \nred skin\n")
    flags = ("--dataset", "fruit", "--teacher", "t", "--concepts", str(words), "--l1", "0.001")
    result = cli.run(capsys, "distill", "concept", *flags, "--address", gateway.address)
    assert result.code == 0, result.err
    sent = gateway.last(jobs_pb2.CreateDistillationJobRequest).job.concept
    assert [*sent.concepts] == ["red skin", "green"]
    assert sent.l1 == 0.001
    assert sent.dataset == "projects/default/datasets/fruit"


def test_a_folder_is_uploaded_and_a_uri_is_not(
    capsys: Capture, gateway: World, tmp_path: Path
) -> None:
    folder = tmp_path / "My Fruit"
    (folder / "Apple").mkdir(parents=True)
    (folder / "Apple" / "a.jpg").write_bytes(photo(1))
    result = cli.run(capsys, "datasets", "add", str(folder), "--address", gateway.address)
    assert result.code == 0, result.err
    sent = gateway.last(datasets_pb2.CreateDatasetRequest)
    assert sent.dataset_id == "my-fruit"
    assert sent.archive.digest in gateway.blobs
    cli.run(capsys, "datasets", "add", "builtin:fruit-fine", "--address", gateway.address)
    assert gateway.last(datasets_pb2.CreateDatasetRequest).uri == "builtin:fruit-fine"


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_predict_writes_a_row_per_image(
    capsys: Capture, gateway: World, tmp_path: Path, suffix: str
) -> None:
    folder, out = tmp_path / "photos", tmp_path / f"out.{suffix}"
    folder.mkdir()
    for index in range(4):
        (folder / f"{index}.jpg").write_bytes(photo(index))
    (folder / "broken.png").write_bytes(b"no image")
    command = ("students", "predict", "fruit", str(folder), "--out", str(out), "--json")
    result = cli.run(capsys, *command, "--address", gateway.address)
    assert result.json["images"] == 5
    assert result.json["failed"] == 1
    assert result.json["labels"] == {"Pink-Lady": 4}
    rows = pq.read_table(out).to_pylist() if suffix == "parquet" else [*csv.DictReader(out.open())]
    assert [row["item"] for row in rows] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "broken.png"]
    assert rows[4]["error"] == "not an image"
    assert float(rows[0]["p:Apple"] or 0) == 0.25


def test_export_writes_inside_its_folder(capsys: Capture, gateway: World, tmp_path: Path) -> None:
    command = ("students", "export", "fruit", "--out", str(tmp_path / "files"), "--format", "onnx")
    result = cli.run(capsys, *command, "--address", gateway.address)
    assert result.code == 0, result.err
    assert [p.name for p in (tmp_path / "files").iterdir()] == ["student.safetensors"]
    sent = gateway.last(students_pb2.ExportStudentRequest)
    assert sent.format == student_pb2.EXPORT_FORMAT_ONNX
    assert sent.name.endswith("/versions/promoted")


def test_promote_rolls_back(capsys: Capture, gateway: World) -> None:
    result = cli.run(
        capsys, "students", "promote", "fruit", "--rollback", "--address", gateway.address
    )
    assert "fruit serves version 1 now" in result.out
    sent = gateway.last(students_pb2.PromoteStudentVersionRequest)
    assert sent.name == "projects/default/students/fruit/versions/previous"


def test_explain_says_where(capsys: Capture, gateway: World, tmp_path: Path) -> None:
    image = tmp_path / "a.jpg"
    image.write_bytes(photo(1))
    result = cli.run(
        capsys, "students", "explain", "fruit", str(image), "--address", gateway.address
    )
    assert "lower right, 9%" in result.out
    assert "(other concepts)" in result.out
