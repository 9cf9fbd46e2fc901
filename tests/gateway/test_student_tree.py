"""The tree of a student's versions, on both databases, without any service."""

from __future__ import annotations

import pytest
from stillhouse.student.v1 import student_pb2

from services.common.errors import (
    HeadMoved,
    InvalidInput,
    NotFound,
    Precondition,
    StillhouseError,
)
from services.gateway import students
from services.gateway.paging import page
from services.gateway.store import Store, StudentRow, VersionRow
from services.gateway.student_messages import tune_command
from tests.gateway.student_world import (
    FRUIT,
    made,
)


def tune(store: Store, base: int, mark: str, head: int | None = None) -> VersionRow:
    tuned = students.Tuned(base, mark * 64, "c" * 64, [], [], f"tuned {mark}")
    with store.write() as session:
        student = students.find(session, "default", "fruit", lock=True)
        return students.add_tuned(session, student, head or student.head, tuned)


def undo(store: Store) -> VersionRow:
    with store.write() as session:
        student = students.find(session, "default", "fruit", lock=True)
        return students.undo(session, student, "undo")


def promote(store: Store, version: str) -> StudentRow:
    with store.write() as session:
        student = students.find(session, "default", "fruit", lock=True)
        row = students.resolve(session, student, version, "")
        students.promote(session, student, row, f"promote {row.number}")
        return student


def kinds(store: Store) -> list[tuple[int, str, int]]:
    student = students.get(store, "default", "fruit")
    events, _ = students.events_page(store, student, page(0, ""))
    return [(one.sequence, one.kind, one.version) for one in events]


def test_a_job_publishes_once(any_store: Store) -> None:
    first = students.publish(any_store, "default", "fruit", made())
    again = students.publish(any_store, "default", "fruit", made())
    assert (first.number, again.number, again.parent) == (1, 1, 0)
    student = students.get(any_store, "default", "fruit")
    assert (student.head, student.promoted, student.previous) == (1, 1, 0)
    assert kinds(any_store) == [(1, "created", 1)]


def test_a_second_job_adds_a_root_and_serves_the_first(any_store: Store) -> None:
    students.publish(any_store, "default", "fruit", made())
    second = students.publish(any_store, "default", "fruit", made("j2", weights_digest="9" * 64))
    student = students.get(any_store, "default", "fruit")
    assert (second.number, second.parent) == (2, 0)
    assert (student.head, student.promoted) == (2, 1)


def test_undo_walks_up_and_tuning_branches(any_store: Store) -> None:
    students.publish(any_store, "default", "fruit", made())
    tune(any_store, 1, "a")
    tune(any_store, 2, "b")
    assert undo(any_store).number == 2
    assert undo(any_store).number == 1
    with pytest.raises(Precondition, match="nothing to undo"):
        undo(any_store)
    branch = tune(any_store, 1, "d")
    assert (branch.number, branch.parent) == (4, 1)
    student = students.get(any_store, "default", "fruit")
    versions, _ = students.versions_page(any_store, student, page(0, ""))
    assert [(one.number, one.parent) for one in versions] == [(1, 0), (2, 1), (3, 2), (4, 1)]
    assert [one.weights_digest[0] for one in versions] == list("1abd")
    assert [kind for _, kind, _ in kinds(any_store)] == [
        "created", "tuned", "tuned", "undone", "undone", "tuned",
    ]  # fmt: skip


def test_tuning_what_has_moved_is_refused(any_store: Store) -> None:
    students.publish(any_store, "default", "fruit", made())
    tune(any_store, 1, "a")
    with pytest.raises(HeadMoved, match="changed meanwhile") as caught:
        tune(any_store, 1, "b", head=1)
    assert caught.value.head_version == f"{FRUIT}/versions/2"
    assert [number for _, _, number in kinds(any_store)] == [1, 2]


def test_promotion_rolls_back(any_store: Store) -> None:
    students.publish(any_store, "default", "fruit", made())
    with pytest.raises(Precondition, match="no version"):
        promote(any_store, "previous")
    tune(any_store, 1, "a")
    assert promote(any_store, "head").promoted == 2
    assert promote(any_store, "2").previous == 1  # again is no second promotion
    assert promote(any_store, "previous").promoted == 1
    assert promote(any_store, "previous").promoted == 2
    assert [kind for _, kind, _ in kinds(any_store)].count("promoted") == 3


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("9", NotFound),
        ("0", NotFound),
        ("latest", InvalidInput),
        ("-1", InvalidInput),
        ("²", InvalidInput),
        ("9" * 30, InvalidInput),
        ("projects/default/students/other/versions/1", InvalidInput),
        ("projects/default/students/fruit", InvalidInput),
    ],
)
def test_versions_that_are_none(store: Store, text: str, error: type[StillhouseError]) -> None:
    students.publish(store, "default", "fruit", made())
    with store.read() as session, pytest.raises(error):
        students.resolve(session, students.find(session, "default", "fruit"), text, "head")


def test_the_command_of_a_tuning() -> None:
    def edit(label: str, concept: str, factor: float, up: bool = True) -> student_pb2.ConceptEdit:
        direction = student_pb2.DIRECTION_UP if up else student_pb2.DIRECTION_DOWN
        return student_pb2.ConceptEdit(
            label=label, concept=concept, factor=factor, direction=direction
        )

    student = StudentRow(project="default", student_id="fruit")
    one = edit("Pink-Lady", "red skin", 2)
    plain = 'stillhouse students tune fruit --class Pink-Lady --up "red skin" --factor 2'
    assert tune_command(student, [one]) == plain
    student.project = "shop"
    assert tune_command(student, [one], 3) == f"{plain} --base 3 --project shop"
    student.project = "default"
    same = [one, edit("Pink-Lady", 'a "$b`\\', 2, up=False)]
    assert tune_command(student, same) == (
        'stillhouse students tune fruit --class Pink-Lady --up "red skin" '
        '--down "a \\"\\$b\\`\\\\" --factor 2'
    )
    assert tune_command(student, [one, edit("Pear", "leaf", 1.5)]) == (
        'tuned together: Pink-Lady up "red skin" by 2, Pear up leaf by 1.5'
    )


def set_head(store: Store, version: str) -> VersionRow:
    with store.write() as session:
        student = students.find(session, "default", "fruit", lock=True)
        row = students.resolve(session, student, version, "")
        students.set_head(session, student, row, f"checkout {row.number}")
        return row


def test_any_version_becomes_the_head_again(any_store: Store) -> None:
    students.publish(any_store, "default", "fruit", made())
    tune(any_store, 1, "a")
    undo(any_store)
    assert set_head(any_store, "2").weights_digest == "a" * 64  # redo
    set_head(any_store, "head")  # where it stands already: nothing happens
    assert students.get(any_store, "default", "fruit").head == 2
    assert undo(any_store).number == 1
    assert kinds(any_store) == [
        (1, "created", 1), (2, "tuned", 2), (3, "undone", 1), (4, "moved", 2), (5, "undone", 1),
    ]  # fmt: skip


def test_versions_have_names_for_people(any_store: Store) -> None:
    first = students.publish(any_store, "default", "fruit", made())
    assert first.display_name == ""
    for name in ("more peel", "more peel", ""):
        with any_store.write() as session:
            student = students.find(session, "default", "fruit", lock=True)
            row = students.resolve(session, student, "1", "")
            students.rename(session, student, row, name, "rename")
    versions, _ = students.versions_page(any_store, student, page(0, ""))
    assert [one.display_name for one in versions] == [""]
    assert [kind for _, kind, _ in kinds(any_store)] == ["created", "renamed", "renamed"]
