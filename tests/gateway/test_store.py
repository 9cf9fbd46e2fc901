"""The tables in SQLite and PostgreSQL: transactions, repeated requests, writers, pages."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest
from sqlalchemy import select, text

from services.common.errors import InvalidInput
from services.gateway.paging import MAX_SIZE, page
from services.gateway.store import (
    DatasetRow,
    JobEventRow,
    JobRow,
    Store,
    VersionRow,
    _add_columns,
    answered,
    record,
)


def dataset(project: str = "p", dataset_id: str = "d") -> DatasetRow:
    return DatasetRow(project=project, dataset_id=dataset_id, state="CREATING", source_json="{}")


def test_a_row_survives_a_new_store_on_the_same_file(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/deep/down/gateway.db"
    first = Store(url)
    with first.write() as session:
        session.add(dataset())
    first.close()
    second = Store(url)
    with second.read() as session:
        assert session.scalars(select(DatasetRow.dataset_id)).all() == ["d"]
    second.close()


def test_a_failing_transaction_leaves_nothing(any_store: Store) -> None:
    def fail() -> None:
        with any_store.write() as session:
            session.add(dataset())
            session.flush()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with any_store.read() as session:
        assert session.scalars(select(DatasetRow)).all() == []


def test_writers_at_once_lose_no_update(any_store: Store) -> None:
    with any_store.write() as session:
        session.add(dataset())

    def count() -> None:
        for _ in range(20):
            with any_store.write() as session:
                row = session.scalars(select(DatasetRow).with_for_update()).one()
                row.item_count += 1

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with any_store.read() as session:
        assert session.scalars(select(DatasetRow.item_count)).one() == 80


def test_a_reader_is_not_blocked_by_a_writer(any_store: Store) -> None:
    with any_store.write() as writing:
        writing.add(dataset())
        writing.flush()
        with any_store.read() as session:
            assert session.scalars(select(DatasetRow)).all() == []


def test_sqlite_uses_the_write_ahead_log(store: Store) -> None:
    with store.read() as session:
        assert session.scalar(text("PRAGMA journal_mode")) == "wal"
        assert session.scalar(text("PRAGMA foreign_keys")) == 1


def test_a_repeated_request_gets_the_stored_answer(any_store: Store) -> None:
    with any_store.write() as session:
        assert answered(session, "p", "id-1", "Create", b"body") is None
        record(session, "p", "id-1", "Create", b"body", b"answer")
    with any_store.write() as session:
        assert answered(session, "p", "id-1", "Create", b"body") == b"answer"
        assert answered(session, "other", "id-1", "Create", b"body") is None


@pytest.mark.parametrize(("method", "body"), [("Create", b"other"), ("Tune", b"body")])
def test_a_request_id_serves_one_request(any_store: Store, method: str, body: bytes) -> None:
    with any_store.write() as session:
        record(session, "p", "id-1", "Create", b"body", b"answer")
    with pytest.raises(InvalidInput, match="was used for another request"), any_store.read() as s:
        answered(s, "p", "id-1", method, body)


def test_an_empty_request_id_is_not_stored(store: Store) -> None:
    with store.write() as session:
        record(session, "p", "", "Create", b"body", b"answer")
        record(session, "p", "", "Create", b"body", b"answer")
        assert answered(session, "p", "", "Create", b"body") is None


@pytest.mark.parametrize("request_id", ["a b", "x" * 129, "../x", "é"])
def test_a_malformed_request_id_is_refused(store: Store, request_id: str) -> None:
    with pytest.raises(InvalidInput, match="request_id"), store.read() as session:
        answered(session, "p", request_id, "Create", b"")


def test_jobs_and_their_events(any_store: Store) -> None:
    with any_store.write() as session:
        job = JobRow(project="p", job_id="j", state="QUEUED", spec_json="{}")
        session.add(job)
        session.flush()
        session.add_all(
            JobEventRow(job_pk=job.pk, seq=n, payload_json=f'{{"n":{n}}}') for n in (1, 2)
        )
    with any_store.read() as session:
        assert session.scalars(select(JobEventRow.seq).order_by(JobEventRow.seq)).all() == [1, 2]
        assert session.scalars(select(JobRow.ended)).one() is None


def test_page_tokens_go_through_a_list_once() -> None:
    rows, token, seen = list(range(1, 8)), "", []
    while True:
        wanted = page(3, token, "list")
        read = [n for n in rows if n > wanted.position][: wanted.size + 1]
        kept, token = wanted.cut(read, read)
        seen += kept
        if not token:
            break
    assert seen == rows


def test_page_sizes_are_clamped() -> None:
    assert page(0, "").size == 100
    assert page(10_000, "").size == MAX_SIZE


def test_a_negative_page_size_is_refused() -> None:
    with pytest.raises(InvalidInput, match="negative"):
        page(-1, "")


@pytest.mark.parametrize("token", ["x", "W10", "WyJ4IiwtMV0", "é", "AAAA", "=" * 50])
def test_a_malformed_token_is_refused(token: str) -> None:
    with pytest.raises(InvalidInput, match="page_token"):
        page(1, token, "list")


def test_a_token_belongs_to_its_list() -> None:
    token = page(1, "", "list", "p").token(5)
    assert page(1, token, "list", "p").position == 5
    with pytest.raises(InvalidInput, match="not a token of this list"):
        page(1, token, "list", "q")


def test_a_file_of_an_older_release_gets_the_new_column(tmp_path: Path) -> None:
    """The tables as they were before versions had names, with a version in them."""
    url = f"sqlite:///{tmp_path}/old.db"
    Store(url).close()
    with sqlite3.connect(tmp_path / "old.db") as old:
        old.execute("ALTER TABLE student_versions DROP COLUMN display_name")
        old.execute("INSERT INTO students VALUES (1, 'p', 's', 1, 1, 0, 'd', 't', 'e', '[]', 1.0)")
        old.execute(
            "INSERT INTO student_versions VALUES (1, 1, 0, 'j', 'w', 'c', '', '[]', '[]', 1.0)"
        )
    for _ in range(2):  # the second start has nothing to add
        found = Store(url)
        with found.write() as session:
            version = session.get_one(VersionRow, (1, 1))
            assert (version.weights_digest, version.display_name) in (("w", ""), ("w", "mine"))
            version.display_name = "mine"
        found.close()


def test_a_missing_column_is_added_to_any_database(any_store: Store) -> None:
    with any_store.write() as session:
        session.execute(text("ALTER TABLE student_versions DROP COLUMN display_name"))
        _add_columns(session.connection())
    with any_store.read() as session:
        assert session.scalars(select(VersionRow)).all() == []
