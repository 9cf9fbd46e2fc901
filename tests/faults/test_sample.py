"""A few faults of the suite of `make faults` in one job; the whole of it takes about an hour."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from rich.console import Console

from tests.faults.suite.campaign import Campaign, Plan
from tests.faults.suite.faults import Fault, Round, draw, matrix, pick
from tests.faults.suite.jobs import make_catalogue
from tests.faults.suite.record import Record

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.faults,
    pytest.mark.timeout(3600),
    # A world ends by killing all that bears its mark; nobody waits for each of them by its handle.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
_SAMPLE = (
    "concept:1:gateway.kill@teacher_outputs+0.300,redis.flush@regions+0.400,"
    "postgres.kill@concepts+0.200,student.kill@fit+0.300"
)


def play(folder: Path, **more: object) -> Record:
    """Run a campaign in a folder; return what it came to."""
    plan = Plan(folder, **more)  # type: ignore[arg-type]
    record = Record(folder / "record.jsonl")

    async def run() -> None:
        catalogue = await make_catalogue(folder / "data")
        await Campaign(plan, record, Console(), catalogue).run()

    asyncio.run(run())
    return record


def test_a_job_survives_a_sample_of_faults(tmp_path: Path) -> None:
    record = play(tmp_path, replay=_SAMPLE)
    (one,) = record.lines("round")
    assert not any(one[kind] for kind in ("lost", "twice", "wrong_digest", "left")), one
    assert one["state"] == "SUCCEEDED"
    assert len(one["injected"]) == 4
    assert not one["missed"]


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_no_fault_loses_or_doubles_anything(tmp_path: Path) -> None:
    record = play(tmp_path, seed=1, count=40, minutes=60)
    found = [one for one in record.valid() if one["injected"]]
    assert sum(len(one["injected"]) for one in found) >= 40
    for one in found:
        assert not any(one[kind] for kind in ("lost", "twice", "wrong_digest", "left")), one


def test_a_campaign_is_decided_by_its_seed_and_takes_every_place() -> None:
    assert draw(3) == draw(3)
    assert draw(3) != draw(4)
    pending = draw(3)["concept"]
    assert {one.cell for one in pending} == {one.cell for one in matrix("concept")}
    while pending:
        taken = pick("concept", pending, 10)
        assert taken
        pending = [one for one in pending if one not in taken]


def test_a_round_is_written_and_read() -> None:
    it = Round(0, "concept", 2, (Fault("gateway", "kill", "fit", 0.25),))
    assert str(it) == "concept:2:gateway.kill@fit+0.250"
    assert Round.parse(str(it)) == it
    with pytest.raises(ValueError, match="not a fault"):
        Round.parse("concept:2:gateway!")
