"""Backups of a database and a blob store, and what a restore refuses."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pgserver
import pytest
from sqlalchemy import func, select, text

from services.common.errors import DataLoss, InvalidInput, NotFound, Precondition
from services.common.shelf import Shelf
from services.gateway.keeping.backup import Saved, back_up
from services.gateway.keeping.fsck import Outcome, check_bytes, find
from services.gateway.keeping.lease import lease
from services.gateway.keeping.restore import Restored, restore
from services.gateway.keeping.roots import read_rows
from services.gateway.store import DatasetRow, JobRow, Store, VersionRow
from tests.gateway.stored_world import P, Stored, stored_world


@pytest.fixture
def world(tmp_path: Path) -> Stored:
    return stored_world(tmp_path / "first")


def save(world: Stored, tmp_path: Path) -> Saved:
    return back_up(world.url, world.shelf, Shelf(str(tmp_path / "backup")))


def bring_back(tmp_path: Path, name: str = "second", **more: str) -> Restored:
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
    backup = Shelf(str(tmp_path / "backup"))
    back_up(first, world.shelf, backup)
    restore(backup, second, Shelf(str(tmp_path / "second" / "blobs")))
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
