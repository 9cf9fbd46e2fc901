"""The commands on versions of students, on words and on labels."""

from __future__ import annotations

from pathlib import Path

import pytest
from stillhouse.gateway.v1 import datasets_pb2, students_pb2
from stillhouse_client import AsyncClient
from stillhouse_client.commands.datasets import corrections
from stillhouse_client.errors import InvalidRequest, Mismatch

from tests.client import cli
from tests.client.fake_gateway import World

Capture = pytest.CaptureFixture[str]
FRUIT = "projects/default/students/fruit"


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def students(capsys: Capture, gateway: World, *arguments: str) -> cli.Result:
    return cli.run(capsys, "students", *arguments, "--address", gateway.address)


def test_redo_takes_the_newest_child_of_the_head(capsys: Capture, gateway: World) -> None:
    result = students(capsys, gateway, "redo", "fruit")
    assert "version 3 (more peel) is the head now" in result.out
    sent = gateway.last(students_pb2.SetStudentHeadRequest)
    assert (sent.student, sent.version) == (FRUIT, f"{FRUIT}/versions/3")
    assert sent.request_id


async def test_nothing_to_redo(gateway: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async with AsyncClient(gateway.address) as client:

        async def newest(name: str, version: str = "head") -> students_pb2.StudentVersion:
            return students_pb2.StudentVersion(name=f"{FRUIT}/versions/3")

        monkeypatch.setattr(client.students, "version", newest)
        with pytest.raises(Mismatch, match="nothing was tuned from version 3"):
            await client.students.redo("fruit")


def test_checkout_and_rename(capsys: Capture, gateway: World) -> None:
    assert "version 2 (" in students(capsys, gateway, "checkout", "fruit", "2").out
    assert gateway.last(students_pb2.SetStudentHeadRequest).version == f"{FRUIT}/versions/2"
    result = students(capsys, gateway, "rename", "fruit", "2", "less stem")
    assert "version 2 is called 'less stem' now" in result.out
    assert "has no name now" in students(capsys, gateway, "rename", "fruit", "2").out
    assert gateway.last(students_pb2.RenameStudentVersionRequest).display_name == ""


def test_a_tuning_says_which_head_it_expects(capsys: Capture, gateway: World) -> None:
    tune = ("tune", "fruit", "--class", "Apple", "--up", "green", "--expected-head")
    assert students(capsys, gateway, *tune, "1").code == 0
    result = students(capsys, gateway, *tune, "2", "--json")
    assert result.code == 1
    assert result.json["error"]["fields"] == {"head_version": f"{FRUIT}/versions/1"}


async def test_a_moved_head_names_the_new_one(gateway: World) -> None:
    async with AsyncClient(gateway.address) as client:
        with pytest.raises(Mismatch) as caught:
            await client.students.tune("fruit", [], expected_head="2")
    assert caught.value.fields == {"head_version": f"{FRUIT}/versions/1"}


def test_evaluate_shows_overall_figures_first(capsys: Capture, gateway: World) -> None:
    result = students(capsys, gateway, "evaluate", "fruit", "--version", "2", "--split", "test")
    sent = gateway.last(students_pb2.EvaluateStudentVersionRequest)
    assert (sent.name, sent.split) == (f"{FRUIT}/versions/2", "test")
    assert "24 images, the test split; 3.5 concepts per class" in result.out
    assert "0.912 [0.884, 0.937]" in result.out
    assert "undefined: the class is never predicted here" in result.out
    assert result.out.index("fidelity") < result.out.index("precision/Pink-Lady")


def test_concepts_shows_presence_and_places(capsys: Capture, gateway: World) -> None:
    result = students(capsys, gateway, "concepts", "fruit", "--word", "red skin", "--word", "waxy")
    assert "waxy (not in the student)" in result.out
    assert "red skin (not" not in result.out
    assert result.out.index("Pink-Lady") < result.out.index("Apple"), "best AUC first"
    assert "a.jpg" in result.out


async def test_inspection_names_its_arrays(gateway: World) -> None:
    async with AsyncClient(gateway.address) as client:
        found = await client.students.inspect("fruit", "2")
        assert found.version == f"{FRUIT}/versions/2"
        assert await client.blobs.read(found.data.arrays.digest) == b"arrays"


def test_labels_are_corrected(capsys: Capture, gateway: World, tmp_path: Path) -> None:
    table = tmp_path / "right.csv"
    table.write_text('b.jpg,Apple,"Pink-Lady"\n\n"c, d.jpg",Apple\n')
    arguments = ("datasets", "correct", "fruit", "--name", "fruit-2", "--address", gateway.address)
    found = ("--item", "a=b.jpg=Pink-Lady", "--from", str(table), "--json")
    result = cli.run(capsys, *arguments, *found)
    assert result.json["name"] == "projects/default/datasets/fruit-2"
    assert result.json["corrected_from"] == "projects/default/datasets/fruit"
    sent = gateway.last(datasets_pb2.CorrectLabelsRequest)
    assert {one.item_id: list(one.labels) for one in sent.corrections} == {
        "a=b.jpg": ["Pink-Lady"],
        "b.jpg": ["Apple", "Pink-Lady"],
        "c, d.jpg": ["Apple"],
    }
    result = cli.run(capsys, *arguments, "--item", "none.jpg=Apple")
    assert result.code == 2
    assert "no item 'none.jpg'" in result.err


@pytest.mark.parametrize("items", [[], ["a.jpg"], ["=Apple"], ["a.jpg="], ["a=b", "a=c"]])
def test_what_is_no_correction(items: list[str]) -> None:
    with pytest.raises(InvalidRequest):
        corrections(items, None)
