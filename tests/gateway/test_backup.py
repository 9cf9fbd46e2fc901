"""Backups of a database and a blob store, and what a restore refuses."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pgserver
import pytest
from sqlalchemy import func, select, text

from services.common.errors import DataLoss, InvalidInput, NotFound, Precondition
from services.common.shelf import Shelf
from services.gateway.access.tables import ApiKeyRow, SessionRow
from services.gateway.keeping.backup import Saved, back_up
from services.gateway.keeping.fsck import Outcome, check_bytes, find
from services.gateway.keeping.lease import lease
from services.gateway.keeping.restore import Restored, restore
from services.gateway.keeping.roots import read_rows
from services.gateway.projects.rows import ProjectRow
from services.gateway.store import DatasetRow, JobRow, Store, VersionRow
from tests.gateway.stored_world import P, Stored, stored_world


@pytest.fixture
def world(tmp_path: Path) -> Stored:
    return stored_world(tmp_path / "first")


def save(world: Stored, tmp_path: Path) -> Saved:
    return back_up(world.url, world.shelf, Shelf(str(tmp_path / "backup")))


def bring_back(tmp_path: Path, name: str = "second", **more: Any) -> Restored:
    (tmp_path / name).mkdir(exist_ok=True)
    url, blobs = f"sqlite:///{tmp_path}/{name}/gateway.db", Shelf(str(tmp_path / name / "blobs"))
    return restore(Shelf(str(tmp_path / "backup")), url, blobs, **more)


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "keeping.lock"
    }


def test_what_is_restored_is_what_was_there(world: Stored, tmp_path: Path) -> None:
    saved = save(world, tmp_path)
    done = bring_back(tmp_path, digest=saved.digest)
    assert (done.blobs, done.copied) == (saved.blobs, len(set(world.digests.values())))
    assert files(tmp_path / "second" / "blobs") == files(tmp_path / "first" / "blobs")
    store = Store(f"sqlite:///{tmp_path}/second/gateway.db")
    outcome, damaged = Outcome(), list[tuple[str, str]]()
    shelf = Shelf(str(tmp_path / "second" / "blobs"))
    check_bytes(shelf, outcome, damaged)
    rows = read_rows(store, f"sqlite:///{tmp_path}/second/gateway.db")
    find(shelf, rows, damaged, outcome, [])
    assert outcome.findings == []
    assert rows.roots == world.rows().roots
    store.close()


def test_a_further_backup_copies_what_is_new(world: Stored, tmp_path: Path) -> None:
    first = save(world, tmp_path)
    world.put("more", b"more")
    world.shelf.put_ref(P, "models/more", json.dumps({"head": world.digests["more"]}).encode())
    second = save(world, tmp_path)
    assert (second.copied, second.blobs) == (1, first.blobs + 1)
    assert bring_back(tmp_path, "old", backup_id=first.id).blobs == first.blobs
    assert bring_back(tmp_path, "new").blobs == second.blobs


def test_rows_that_come_while_it_runs_do_no_harm(world: Stored, tmp_path: Path) -> None:
    """A writer stores blobs and names them while the backup runs: all that is in the copied rows is
    in the copy."""
    done = threading.Event()

    def write() -> None:
        at = 0
        while not done.is_set():
            at += 1
            digest = world.shelf.put(P, f"report {at}".encode())
            with world.store.write() as session:
                result = json.dumps({"report": digest})
                session.add(
                    JobRow(
                        project=P,
                        job_id=f"j{at}",
                        state="FAILED",
                        spec_json="{}",
                        result_json=result,
                    )
                )

    writer = threading.Thread(target=write)
    writer.start()
    save(world, tmp_path)
    done.set()
    writer.join()
    bring_back(tmp_path)
    url = f"sqlite:///{tmp_path}/second/gateway.db"
    store, outcome = Store(url), Outcome()
    find(Shelf(str(tmp_path / "second" / "blobs")), read_rows(store, url), [], outcome, [])
    assert outcome.findings == []
    store.close()


def test_only_an_empty_place_is_taken(world: Stored, tmp_path: Path) -> None:
    save(world, tmp_path)
    bring_back(tmp_path)
    with pytest.raises(Precondition, match="database is not empty"):
        bring_back(tmp_path)
    Shelf(str(tmp_path / "third" / "blobs")).put(P, b"something")
    with pytest.raises(Precondition, match="blob store is not empty"):
        bring_back(tmp_path, "third")


def test_an_interrupted_restore_goes_on(world: Stored, tmp_path: Path) -> None:
    save(world, tmp_path)

    class Cut(Exception):
        pass

    def cut(done: Restored) -> None:
        if done.blobs == 7:
            raise Cut

    (tmp_path / "second").mkdir()
    url, shelf = f"sqlite:///{tmp_path}/second/gateway.db", Shelf(str(tmp_path / "second/blobs"))
    with pytest.raises(Cut):
        restore(Shelf(str(tmp_path / "backup")), url, shelf, progress=cut)
    assert not (tmp_path / "second" / "gateway.db").exists()
    done = bring_back(tmp_path)
    assert done.copied == done.blobs - 7


def test_a_database_that_comes_while_it_copies_is_not_overwritten(
    world: Stored, tmp_path: Path
) -> None:
    save(world, tmp_path)
    url = f"sqlite:///{tmp_path}/second/gateway.db"

    def start_a_gateway(done: Restored) -> None:
        if done.blobs == 7:
            with Store(url).write() as session:
                session.add(DatasetRow(project=P, dataset_id="new", state="READY", source_json=""))

    with pytest.raises(Precondition, match="made meanwhile"):
        bring_back(tmp_path, progress=start_a_gateway)
    with Store(url).read() as session:
        assert session.scalars(select(DatasetRow.dataset_id)).all() == ["new"]


def test_a_restore_that_was_killed_between_its_two_files_goes_on(
    world: Stored, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workflows = tmp_path / "first" / "gateway-workflows.db"
    with contextlib.closing(sqlite3.connect(workflows)) as made, made:
        made.execute("CREATE TABLE workflow_status (workflow_uuid TEXT)")
    save(world, tmp_path)
    replace = os.replace

    def killed(source: Path, target: Path) -> None:
        if Path(target).name == "gateway.db":
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            bring_back(tmp_path)
    here = tmp_path / "second" / "gateway-workflows.db"
    assert here.exists()
    theirs = here.read_bytes()
    here.write_bytes(theirs + b"x")
    with pytest.raises(Precondition, match="made meanwhile"):
        bring_back(tmp_path)
    here.write_bytes(theirs)
    bring_back(tmp_path)
    assert (tmp_path / "second" / "gateway.db").exists()


@pytest.mark.parametrize("revoke_keys", [False, True])
def test_no_session_comes_back_and_keys_only_where_they_are_wanted(
    world: Stored, tmp_path: Path, revoke_keys: bool
) -> None:
    let_in(world.store)
    save(world, tmp_path)
    bring_back(tmp_path, revoke_keys=revoke_keys)
    assert who_gets_in(f"sqlite:///{tmp_path}/second/gateway.db") == (0, 0 if revoke_keys else 1)
    assert who_gets_in(world.url) == (1, 1)


def let_in(store: Store) -> None:
    about = {"subject": "me", "display_name": "", "grants_json": "[]"}
    session_row = SessionRow(
        session_id="s", digest=b"1", key_id="k", expires=time.time() + 60, **about
    )
    key = ApiKeyRow(
        key_id="k", project=P, role=1, digest=b"2", creator="me", expires=time.time() + 60
    )
    with store.write() as session:
        session.add_all([session_row, key])


def who_gets_in(url: str) -> tuple[int, int]:
    """Count the sessions, and the keys that work."""
    store = Store(url)
    with store.read() as session:
        sessions = session.scalar(select(func.count()).select_from(SessionRow)) or 0
        keys = select(func.count()).select_from(ApiKeyRow).where(ApiKeyRow.revoked.is_(None))
        found = sessions, session.scalar(keys) or 0
    store.close()
    return found


@pytest.mark.parametrize(
    "name", ["manifest.json", "gateway.db", "refs.jsonl", "blobs.txt", "a blob", "a lost blob"]
)
def test_a_damaged_backup_is_refused_and_leaves_no_database(
    world: Stored, tmp_path: Path, name: str
) -> None:
    save(world, tmp_path)
    if "blob" in name and "." not in name:
        digest = world.digests["weights1"]
        path = next((tmp_path / "backup").rglob(digest))
    else:
        path = next((tmp_path / "backup").rglob(name))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink() if name == "a lost blob" else path.write_bytes(data)
    with pytest.raises(DataLoss):
        bring_back(tmp_path)
    assert not (tmp_path / "second" / "gateway.db").exists()


@pytest.mark.parametrize("name", ["manifest.json", "gateway.db", "blobs.txt"])
def test_a_truncated_backup_is_refused(world: Stored, tmp_path: Path, name: str) -> None:
    save(world, tmp_path)
    path = next((tmp_path / "backup").rglob(name))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataLoss):
        bring_back(tmp_path)


def test_one_without_a_manifest_does_not_count(world: Stored, tmp_path: Path) -> None:
    save(world, tmp_path)
    next((tmp_path / "backup").rglob("manifest.json")).unlink()
    with pytest.raises(NotFound, match="no finished backup"):
        bring_back(tmp_path)


def test_a_manifest_that_was_rewritten_is_seen_by_its_digest(world: Stored, tmp_path: Path) -> None:
    saved = save(world, tmp_path)
    with pytest.raises(DataLoss, match="was changed"):
        bring_back(tmp_path, digest="0" * 64)
    assert bring_back(tmp_path, digest=saved.digest).blobs == saved.blobs


def test_what_is_damaged_is_told_and_left_out(world: Stored, tmp_path: Path) -> None:
    world.flip("weights1")
    saved = save(world, tmp_path)
    assert saved.damaged == [f"{P}/{world.digests['weights1']}"]
    assert bring_back(tmp_path).damaged == 1


def test_a_table_is_not_held_in_memory(world: Stored, tmp_path: Path) -> None:
    """The parts of the workflow engine's file that are held at a time are much less than it is."""
    workflows = tmp_path / "first" / "gateway-workflows.db"
    with contextlib.closing(sqlite3.connect(workflows)) as made, made:
        made.execute("CREATE TABLE outputs (output BLOB)")
        for _ in range(24):
            made.execute("INSERT INTO outputs VALUES (zeroblob(1000000))")
    tracemalloc.start()
    save(world, tmp_path)
    bring_back(tmp_path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 12_000_000


def test_what_vanishes_is_named(world: Stored, tmp_path: Path) -> None:
    """Somebody removes a blob by hand between its listing and its copy."""
    gone = world.digests["weights1"]

    class Losing(Shelf):
        def open(self, project: str, digest: str) -> BinaryIO:
            if digest == gone:
                world.path("weights1").unlink()
            return super().open(project, digest)

    target = Shelf(str(tmp_path / "backup"))
    saved = back_up(world.url, Losing(str(world.folder / "blobs")), target)
    assert (saved.vanished, saved.damaged) == ([f"{P}/{gone}"], [])


def test_no_backup_lies_in_its_own_store_or_runs_beside_a_collection(
    world: Stored, tmp_path: Path
) -> None:
    inside = Shelf(str(tmp_path / "first" / "blobs" / "backup"))
    with pytest.raises(InvalidInput, match="must not lie"):
        back_up(world.url, world.shelf, inside)
    busy = pytest.raises(Precondition, match="a garbage collection is at work")
    with lease(world.shelf, "a garbage collection"), busy:
        save(world, tmp_path)


@pytest.fixture
def databases(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Two empty PostgreSQL databases."""
    server = pgserver.get_server(tmp_path / "pg")
    try:
        url = server.get_uri().replace("postgresql://", "postgresql+psycopg://")
        server.psql("CREATE DATABASE again")
        yield url, url.replace("/postgres?", "/again?")
    finally:
        server.cleanup()


def test_postgresql_is_copied_of_one_moment_and_counts_on(
    world: Stored, tmp_path: Path, databases: tuple[str, str]
) -> None:
    from dbos import DBOS

    first, second = databases
    DBOS.migrate(first)
    there = Store(first)
    with there.write() as session:
        session.add(
            DatasetRow(project=P, dataset_id="d", state="READY", source_json='{"a\\t":"\\n"}')
        )
    let_in(there)
    backup = Shelf(str(tmp_path / "backup"))
    back_up(first, world.shelf, backup)

    def write(done: Restored) -> None:
        with Store(second).write() as session:
            if done.blobs == 1:
                session.add(ProjectRow(project="new"))

    with pytest.raises(Precondition, match="written to meanwhile"):
        restore(backup, second, Shelf(str(tmp_path / "second" / "blobs")), progress=write)
    with Store(second).write() as session:
        session.delete(session.scalars(select(ProjectRow)).one())
    restore(backup, second, Shelf(str(tmp_path / "second" / "blobs")), revoke_keys=True)
    assert who_gets_in(second) == (0, 0)
    again = Store(second)
    with again.write() as session:
        (row,) = session.scalars(select(DatasetRow)).all()
        assert row.source_json == '{"a\\t":"\\n"}'
        added = DatasetRow(project=P, dataset_id="e", state="READY", source_json="{}")
        session.add(added)
        session.flush()
        assert added.pk == row.pk + 1
        assert session.scalar(select(func.count()).select_from(VersionRow)) == 0
        assert session.scalar(text("SELECT count(*) FROM dbos.workflow_status")) == 0
    with pytest.raises(Precondition, match="not empty"):
        restore(backup, second, Shelf(str(tmp_path / "third" / "blobs")))
    with pytest.raises(Precondition, match="postgresql database"):
        restore(backup, f"sqlite:///{tmp_path}/x.db", Shelf(str(tmp_path / "fourth")))
    there.close()
    again.close()
