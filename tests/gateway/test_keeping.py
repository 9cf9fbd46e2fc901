"""Reachability, fsck and gc on a database and a blob store as a gateway leaves them."""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import LargeBinary, String

from services.common.catalogue import load_catalogue
from services.common.errors import NotFound, Precondition
from services.common.shelf import Shelf
from services.gateway.datasets.readers import Reading, UriPolicy
from services.gateway.keeping import commands
from services.gateway.keeping import roots as all_tables  # noqa: F401
from services.gateway.keeping.collect import DAY_S, Ages, Collected, collect
from services.gateway.keeping.fsck import Outcome, Repair, check_bytes, find
from services.gateway.keeping.lease import lease
from services.gateway.keeping.repairs import ForgetStage, FromBackup, FromSource
from services.gateway.keeping.rules import OTHER_COLUMNS, REFS, TABLES, Need
from services.gateway.keeping.showing import Bar
from services.gateway.projects.deletion import remove_blobs
from services.gateway.settings import GatewaySettings
from services.gateway.store import Base, DatasetRow, JobRow, StudentRow, VersionRow
from tests.gateway.stored_world import P, Stored, stored_world

HERE = Path(__file__).parents[2]
USUAL = Ages()


@pytest.fixture
def world(tmp_path: Path) -> Stored:
    return stored_world(tmp_path)


def test_every_column_that_can_hold_a_digest_is_known() -> None:
    for table in Base.metadata.sorted_tables:
        assert table.name in TABLES, f"say in rules.py which columns of {table.name} name blobs"
        for column in table.columns:
            where = f"{table.name}.{column.name}"
            is_long = isinstance(column.type, LargeBinary) or (
                isinstance(column.type, String)
                and (column.type.length is None or "digest" in column.name)
            )
            names_things = column.name in ("dataset", "teacher", "encoder", "job", "description")
            known = column.name in TABLES[table.name] or where in OTHER_COLUMNS or names_things
            assert known or not is_long, f"say in rules.py whether {where} names blobs"


def test_every_folder_of_refs_is_known() -> None:
    """Refs are spelt as literals, or by `stage_ref`; a new folder needs a rule."""
    found: set[str] = set()
    for path in (HERE / "services").rglob("*.py"):
        if "keeping" in path.parts:
            continue
        source = path.read_text(encoding="utf-8")
        if "put_ref" not in source:
            continue
        texts = [n.value for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Constant)]
        found |= {t.partition("/")[0] for t in texts if isinstance(t, str) and t.endswith("/")}
        assert any(
            name in source for name in ("models/", "stage_ref", "stages/", "_FOLDER", "def put_ref")
        ), f"{path} writes a ref that rules.py may not know"
    assert {one for one in found if one and one.isidentifier()} <= set(REFS)


def test_all_that_is_named_is_reached_and_nothing_else_is_missed(world: Stored) -> None:
    graph = world.graph()
    assert {d for d in world.digests.values() if graph.need(d) is None} == set()
    assert graph.unknown == set()
    assert graph.need(world.digests["image0"]) == Need.TRUTH
    assert graph.need(world.digests["regions"]) == Need.DERIVED
    assert graph.need(world.digests["answer"]) == Need.DERIVED
    assert graph.need("d" * 64) == Need.LOOSE
    assert graph.need("c" * 64) in (None, Need.LOOSE)


def test_a_field_that_no_rule_knows_is_told_and_kept(world: Stored) -> None:
    secret = world.put("secret", b"of a new release")
    world.shelf.put_ref(P, "models/new", json.dumps({"novelty": secret}).encode())
    world.shelf.put_ref(P, "novelties/one", json.dumps({"x": secret}).encode())
    graph = world.graph()
    assert graph.unknown == {"models:novelty", "refs/novelties", "novelties:x"}
    assert graph.need(secret) == Need.LOOSE


def check(world: Stored, *repairs: Repair) -> Outcome:
    outcome, damaged = Outcome(), list[tuple[str, str]]()
    check_bytes(world.shelf, outcome, damaged)
    find(world.shelf, world.rows(), damaged, outcome, repairs)
    return outcome


def from_source(world: Stored) -> FromSource:
    reading = Reading(
        policy=UriPolicy.for_host("127.0.0.1"),
        blobs=world.shelf,
        catalogue=load_catalogue([]),
        cache_dir=world.folder,
        max_image_bytes=1 << 20,
    )
    return FromSource(world.store, reading)


def test_a_sound_store_is_all_well(world: Stored) -> None:
    outcome = check(world)
    assert (outcome.findings, outcome.checked) == ([], len(set(world.digests.values())))


@pytest.mark.parametrize("name", ["image2", "manifest"])
@pytest.mark.parametrize("how", ["flip", "lose"])
def test_a_dataset_is_read_again_from_its_source(world: Stored, name: str, how: str) -> None:
    """The ingest that made the manifest makes it again, with all its images."""
    repair = from_source(world)
    repair("none", "", [])
    _remake(world)
    world.flip(name) if how == "flip" else world.path(name).unlink()
    (finding,) = check(world, repair).findings
    assert (finding.what, finding.repair) == (
        "damaged" if how == "flip" else "missing",
        "read again from the dataset's source",
    )
    world.shelf.check(P, world.digests[name])
    assert check(world).hurt == []


def _remake(world: Stored) -> None:
    """Let the dataset's manifest be what an ingest makes of the photos."""
    with world.store.write() as session:
        row = session.query(DatasetRow).one()
        source = row.source_json
    from google.protobuf import json_format
    from stillhouse.gateway.v1 import datasets_pb2

    from services.gateway.datasets.ingest import Options, ingest
    from services.gateway.datasets.readers import open_uri

    request = json_format.Parse(source, datasets_pb2.CreateDatasetRequest())
    made = ingest(open_uri(request.uri, from_source(world).reading), world.shelf, P, Options())
    world.digests["manifest"] = made.manifest_digest
    with world.store.write() as session:
        session.query(DatasetRow).one().manifest_digest = made.manifest_digest


def test_a_stages_output_is_forgotten_and_a_students_is_named(world: Stored) -> None:
    world.flip("answer")
    world.flip("regions")
    world.path("weights1").unlink()
    outcome = check(world, ForgetStage(world.shelf))
    by_digest = {one.digest: one for one in outcome.findings}
    assert "computed again" in by_digest[world.digests["answer"]].repair
    assert not list(world.folder.glob("blobs/projects/*/refs/stages/answers/*"))
    lost = by_digest[world.digests["weights1"]]
    assert (lost.what, lost.is_hurt) == ("missing", True)
    assert lost.needed_by[0].startswith("projects/default/students/fruit/versions/1 (")
    regions = by_digest[world.digests["regions"]]
    assert regions.is_hurt
    assert "run the job" in regions.advice
    assert not list(world.folder.glob("blobs/projects/*/refs/stages/regions/*"))
    kept = world.folder / "blobs" / "projects" / P / "quarantine"
    assert {path.name for path in kept.iterdir()} == {
        world.digests["answer"],
        world.digests["regions"],
    }


def test_whatever_a_backup_has_comes_back(world: Stored, tmp_path: Path) -> None:
    backup = Shelf(str(tmp_path / "elsewhere"))
    for digest in set(world.digests.values()):
        backup.put(P, world.shelf.get(P, digest))
    for name in ("weights1", "card2", "manifest", "model", "words", "report"):
        world.flip(name)
    outcome = check(world, FromBackup(backup, world.shelf))
    assert len(outcome.findings) == 6
    assert outcome.hurt == []
    assert check(world).findings == []


def test_a_check_goes_on_after_the_blob_it_ended_with(world: Stored) -> None:
    whole, rest = Outcome(), Outcome()
    check_bytes(world.shelf, whole, [])
    middle = sorted(set(world.digests.values()))[5]
    check_bytes(world.shelf, rest, [], after=f"{P}/{middle}")
    assert (rest.checked, rest.last) == (whole.checked - 6, whole.last)


def gc(world: Stored, ages: Ages = USUAL, *, dry_run: bool = False) -> Collected:
    return collect(world.shelf, world.rows, ages, dry_run=dry_run)


def test_only_what_is_old_and_unnamed_goes(world: Stored) -> None:
    world.put("garbage", b"nobody's")
    base = world.folder / "blobs" / "projects" / P
    (base / "tmp").mkdir()
    (base / "tmp" / "half").write_bytes(b"half an upload")
    world.age(48)
    world.put("young", b"somebody is about to name this")
    would = gc(world, dry_run=True)
    assert (would.blobs, would.leftovers, would.young) == (1, 1, 1)
    assert world.exists("garbage")
    assert gc(world).blobs == 1
    assert not world.exists("garbage")
    assert not (base / "tmp" / "half").exists()
    del world.digests["garbage"]
    assert all(world.exists(name) for name in world.digests)


def test_storing_again_saves_what_is_old(world: Stored) -> None:
    world.put("garbage", b"nobody's")
    world.age(48)
    world.put("garbage", b"nobody's")
    assert gc(world).blobs == 0


def test_what_a_young_blob_names_stays(world: Stored) -> None:
    world.put("image", b"of a dataset whose row was deleted")
    world.age(48)
    world.put_json("new manifest", {"items": [{"digest": world.digests["image"]}]})
    assert gc(world).blobs == 0
    world.age(48)
    assert gc(world).blobs == 2


def test_what_was_stored_since_an_unfinished_job_began_stays(world: Stored) -> None:
    world.put("old", b"stored before the job")
    world.age(30)
    world.put("input", b"of a stage that recorded nothing yet")
    world.age(20)
    with world.store.write() as session:
        job = JobRow(project=P, job_id="j", state="RUNNING", spec_json="{}")
        job.created = time.time() - 22 * 3600
        session.add(job)
    assert gc(world, Ages(grace_s=3600)).blobs == 1
    assert (world.exists("old"), world.exists("input")) == (False, True)


def test_stages_are_forgotten_only_where_asked_and_where_nothing_runs(world: Stored) -> None:
    world.age(24 * 40)
    assert gc(world).stages == 0
    ages = Ages(stages_s=30 * DAY_S)
    with world.store.write() as session:
        session.add(JobRow(project=P, job_id="j", state="RUNNING", spec_json="{}"))
    assert gc(world, ages).stages == 0
    with world.store.write() as session:
        session.query(JobRow).filter_by(job_id="j").one().state = "FAILED"
    first = gc(world, ages)
    assert (first.stages, first.blobs) == (3, 0)
    world.age(48)
    assert gc(world).blobs == 2
    assert not world.exists("answer")
    assert world.exists("regions")  # the student's card names it


def test_nothing_goes_where_it_is_not_known_what_was_named(world: Stored) -> None:
    world.flip("manifest")
    world.age(48)
    found = gc(world)
    assert (found.blobs, list(found.skipped)) == (0, [P])
    assert "fsck" in found.skipped[P]


def test_an_empty_database_collects_nothing(world: Stored, tmp_path: Path) -> None:
    world.age(48)
    with world.store.write() as session:
        for table in (DatasetRow, JobRow, VersionRow, StudentRow):
            session.query(table).delete()
    assert "right one" in gc(world).skipped[P]


def test_a_killed_collection_puts_back_what_it_had_in_hand(world: Stored) -> None:
    aside = world.folder / "blobs" / "projects" / P / "tmp"
    aside.mkdir()
    os.rename(world.path("weights1"), aside / f"condemned-{world.digests['weights1']}")
    gc(world, dry_run=True)
    assert world.exists("weights1")


def test_one_keeps_a_store_at_a_time(world: Stored) -> None:
    busy = pytest.raises(Precondition, match="a backup is at work")
    with lease(world.shelf, "a backup"), busy, lease(world.shelf, "another"):
        pass
    with lease(world.shelf, "a third"):
        pass


def test_a_check_waits_for_the_end_of_a_collection(
    world: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would put back what the collection is taking away."""
    monkeypatch.setenv("GATEWAY_DATABASE_URL", world.url)
    monkeypatch.setenv("GATEWAY_BLOB_URL", str(world.folder / "blobs"))
    given = argparse.Namespace(after="", no_repair=False, source="")
    bar = Bar("fsck", quiet=True)
    busy = pytest.raises(Precondition, match="a garbage collection is at work")
    with lease(world.shelf, "a garbage collection"), busy:
        commands.fsck(given, bar)
    said, _, is_well = commands.fsck(given, bar)
    assert (said["findings"], is_well) == ([], True)


def test_a_deleted_project_goes_after_the_backup_that_copies_it(world: Stored) -> None:
    busy = pytest.raises(Precondition, match="a backup is at work")
    with lease(world.shelf, "a backup"), busy:
        remove_blobs(world.shelf, world.shelf, P)
    assert world.exists("weights1")
    remove_blobs(world.shelf, world.shelf, P)
    assert not any(world.shelf.count(P).values())


def test_a_check_reads_sources_by_the_rules_of_the_gateway(
    world: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dataset that was read from a private address that a setting allows is read from there
    again; one that asks for the blob store itself is not."""
    blobs = str(world.folder / "blobs")
    for name, value in {"BLOB_URL": blobs, "ALLOWED_ADDRESSES": '["10.1.2.3"]'}.items():
        monkeypatch.setenv(f"GATEWAY_{name}", value)
    for asks, are_files_read in (("none", True), ("required", False)):
        monkeypatch.setenv("GATEWAY_AUTH", asks)
        settings = GatewaySettings()
        _, source, _ = commands._repairs(settings, world.shelf, world.store, blobs)
        assert isinstance(source, FromSource)
        policy = source.reading.policy
        policy.check("http://10.1.2.3/photos.zip")
        with pytest.raises(Precondition, match="own data"):
            policy.check(f"file://{blobs}")
        assert policy.loopback == are_files_read


def test_a_blob_that_somebody_puts_back_while_it_goes_stays(
    world: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.put("garbage", b"nobody's")
    world.age(48)
    stat = os.stat

    def put_back(path: str, **more: object) -> os.stat_result:
        if "condemned-" in str(path):
            Shelf(str(world.folder / "blobs")).recover()
        return stat(path, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "stat", put_back)
    assert not world.shelf.remove(P, world.digests["garbage"], older_than=time.time())
    assert world.exists("garbage")


def test_of_many_that_begin_at_one_moment_one_gets_the_store(world: Stored) -> None:
    """The lease of a process that has died lies there: all of them would take it."""
    stale = {"id": "x", "what": "a backup", "pid": 1, "host": "elsewhere", "beat": 0}
    ready, over = threading.Barrier(8), threading.Event()
    got, refused = list[int](), list[int]()

    def begin(at: int) -> None:
        ready.wait()
        try:
            with lease(world.shelf, f"process {at}"):
                got.append(at)
                over.wait(60)
        except Precondition:
            refused.append(at)
        if len(got) + len(refused) == 8:
            over.set()

    world.shelf.write_file("keeping.json", json.dumps(stale).encode())
    threads = [threading.Thread(target=begin, args=(at,)) for at in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (1, 7)


def test_who_has_lost_the_store_stops_and_leaves_it_to_the_other(world: Stored) -> None:
    """A process that was stopped for long wakes up after another has taken the store over."""
    taken = json.dumps(
        {"id": "x", "what": "a backup", "pid": 1, "host": "elsewhere", "beat": time.time()}
    ).encode()
    with lease(world.shelf, "a garbage collection") as held:
        held.check()
        world.shelf.write_file("keeping.json", taken)
        held.renew()
        with pytest.raises(Precondition, match="lost the blob store"):
            held.check()
    assert world.shelf.read_file("keeping.json") == taken


def test_a_store_that_is_away_for_a_moment_ends_no_lease(
    world: Stored, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.gateway.keeping.lease._BEAT_S", 0.01)
    blobs, away = world.folder / "blobs", world.folder / "away"

    def beat() -> float:
        return float(json.loads((blobs / "keeping.json").read_bytes())["beat"])

    with lease(world.shelf, "a backup") as held:
        blobs.rename(away)
        blobs.write_text("not a folder")
        time.sleep(0.2)
        blobs.unlink()
        away.rename(blobs)
        then = beat()
        until_s = time.monotonic() + 60
        while beat() == then and time.monotonic() < until_s:
            time.sleep(0.01)
        assert beat() > then
        held.check()


@pytest.mark.parametrize("seed", range(12))
def test_whatever_the_state_nothing_named_ever_goes(tmp_path: Path, seed: int) -> None:
    """Random graphs of rows, refs and blobs of random ages: what goes is exactly what is old and
    out of reach, by a model of ten lines that knows nothing of the rules."""
    rng = random.Random(seed)
    world = stored_world(tmp_path)
    names: dict[str, set[str]] = {}
    digests: list[str] = []
    for at in range(60):
        inner = rng.sample(digests, min(len(digests), rng.randrange(3)))
        made = world.put_json(f"b{at}", {"n": at, rng.choice(["x", "files", "y"]): inner})
        names[made] = set(inner)
        digests.append(made)
    hours = {digest: rng.choice([0.0, 1.0, 23.0, 25.0, 500.0]) for digest in digests}
    rooted = rng.sample(digests, 5)
    for at, digest in enumerate(rooted):
        folder = rng.choice(["models", "stages/x", "concept-sets"])
        world.shelf.put_ref(P, f"{folder}/r{at}", json.dumps({"files": [digest]}).encode())
    for at, digest in enumerate(digests):
        then = time.time() - hours[digest] * 3600
        os.utime(world.path(f"b{at}"), (then, then))
    kept = {d for d in digests if d in rooted or hours[d] < 24}
    while (more := {inner for d in kept for inner in names[d]} - kept) != set():
        kept |= more
    gc(world)
    assert {d for d in digests if world.shelf.exists(P, d)} == kept
    assert check(world).hurt == []


def test_writers_beside_a_collection_lose_nothing(world: Stored) -> None:
    """Threads store old garbage again, name it and read it, while collections run."""
    contents = [f"garbage {at}".encode() for at in range(40)]
    for data in contents:
        world.shelf.put(P, data)
    world.age(48)
    done, lost = threading.Event(), list[str]()

    def write(part: list[bytes]) -> None:
        for data in part:
            digest = world.shelf.put(P, data)
            world.shelf.put_ref(P, f"models/m{digest[:8]}", json.dumps({"head": digest}).encode())
            try:
                world.shelf.get(P, digest)
            except NotFound:
                time.sleep(0.05)  # in the hand of a collection that puts it back
                if not world.shelf.exists(P, digest):
                    lost.append(digest)

    def sweep() -> None:
        while not done.is_set():
            gc(world)

    sweeper = threading.Thread(target=sweep)
    writers = [threading.Thread(target=write, args=(contents[at::3],)) for at in range(3)]
    for thread in (sweeper, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    sweeper.join()
    assert lost == []
    assert check(world).findings == []
