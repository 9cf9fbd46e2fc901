"""A campaign: rounds until every fault of the matrix has been injected, or the time is over."""

from __future__ import annotations

import asyncio
import random
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console

from tests.faults.suite import checks, jobs, rounds, table
from tests.faults.suite.faults import (
    STAGES,
    Fault,
    Round,
    draw,
    pick,
    pick_special,
    specials,
)
from tests.faults.suite.record import Record
from tests.faults.suite.watch import Database
from tests.faults.suite.wide import wide_world
from tests.faults.suite.world import World, world

_SEEDS = 2
"""Different seeds of jobs: one student is expected of each."""
_TRIES = 4
"""How often a fault is planned for which jobs are over too soon."""
_FAILURES = 3
"""Worlds that may fail to start."""
_EVERY = 5
"""One round in so many is for another job kind."""


@dataclass
class Plan:
    """What a campaign is to do."""

    folder: Path
    seed: int = 0
    count: int = 200
    minutes: float = 60
    most: int = 14
    """Faults a round."""
    only: str = ""
    """Job kind; all where it is empty."""
    special: bool = False
    """The faults alone that need a wide world; else they come last."""
    replay: str = ""
    """One round to run again, as its text has it."""


@dataclass
class Campaign:
    """Runs rounds in one world after another: a world in which something stayed wrong is left."""

    plan: Plan
    record: Record
    console: Console
    catalogue: Path
    began_s: float = field(default_factory=time.monotonic)
    calm: dict[tuple[str, int], rounds.Calm] = field(default_factory=dict)
    _keep: bool = False
    """Whether something was wrong in the world of now, whose folder is then worth a look."""

    async def run(self) -> None:
        """Go on until all is done or the time is over."""
        failures = 0
        while self._next() is not None:
            folder = self.plan.folder / f"world-{time.time_ns():x}"
            try:
                if self._special():
                    async with wide_world(folder, self.catalogue) as wide:
                        self.record.add("wide", missing=wide.missing)
                        await self._in(wide)
                else:
                    async with world(folder, self.catalogue) as made:
                        await self._in(made)
            except RuntimeError as error:  # it did not start
                failures += 1
                self.console.print(f"[red]{error}[/red]")
                if failures > _FAILURES:
                    raise
            finally:
                if not self._keep:
                    shutil.rmtree(folder, ignore_errors=True)
                self._keep = False

    async def _in(self, made: World) -> None:
        db = Database(made.postgres.dsn)
        try:
            await jobs.prepare_source(made.address)
            idle: Mapping[str, int] = {}
            special = self._special()
            while (it := self._next()) is not None and self._special() == special:
                wanted = await self._wanted(made, db, it)
                idle = idle or await self._idle(made)
                project = f"r{it.number}-{it.job}-{time.time_ns():x}"
                told = await rounds.play(made, db, it, project, wanted, idle)
                self.record.add("round", **told.as_json())
                self._tell(told)
                if self.plan.replay:
                    return
                self._keep |= bool(told.bad)
                if told.broken:
                    return
        finally:
            await db.close()

    async def _idle(self, made: World) -> Mapping[str, int]:
        await asyncio.sleep(2)
        return checks.idle_counts(made)

    async def _wanted(self, made: World, db: Database, it: Round) -> rounds.Calm:
        """What the undisturbed job makes; known from the record after the first time."""
        key = it.job, it.seed
        for line in self.record.lines("calm"):
            values = {name: line[name] for name in ("digest", "stage_s", "refs")}
            self.calm.setdefault((line["job"], line["seed"]), rounds.Calm(**values))
        if key not in self.calm:
            self.console.print(f"undisturbed {it.job} job with seed {it.seed}")
            project = f"calm-{it.job}-{it.seed}"
            self.calm[key] = await rounds.calm(made, db, it.job, it.seed, project)
            self.record.add("calm", job=it.job, seed=it.seed, **asdict(self.calm[key]))
        return self.calm[key]

    def _special(self) -> bool:
        """Whether the next round needs a wide world."""
        it = self._next()
        return it is not None and any(fault.special for fault in it.faults)

    def _next(self) -> Round | None:
        """The next round: faults that have not been, of the concept job and now and then of
        another kind."""
        if self.plan.replay:
            return None if self._replayed() else Round.parse(self.plan.replay)
        done = self.record.done()
        if self.left_s() <= 0:
            return None
        number = sum(1 for _ in self.record.lines("round"))
        pending = self._pending(done)
        kinds = [job for job in STAGES if pending[job]]
        special = self._pending_specials(done.get("concept", set()))
        enough = table.summary(self.record.valid())["injected"] >= self.plan.count
        if self.plan.special or enough or not kinds:
            found = pick_special(special)
            return Round(number, "concept", 1, tuple(found)) if found else None
        rng = random.Random(f"{self.plan.seed}/{number}")
        others = [job for job in kinds if job != "concept"]
        other = number % _EVERY == _EVERY - 1 or "concept" not in kinds
        job = rng.choice(others) if others and other else "concept"
        faults = pick(job, pending[job], self.plan.most)
        return Round(number, job, 1 + rng.randrange(_SEEDS), tuple(faults))

    def _replayed(self) -> bool:
        return any(one["text"] == self.plan.replay for one in self.record.lines("round"))

    def _pending(self, done: Mapping[str, set[tuple[str, str, str]]]) -> dict[str, list[Fault]]:
        missed = self.record.missed()
        return {
            job: [
                one
                for one in faults
                if one.cell not in done.get(job, set())
                and missed.get((job, str(one)), 0) < _TRIES
                and self.plan.only in ("", job)
            ]
            for job, faults in draw(self.plan.seed).items()
        }

    def _pending_specials(self, done: set[tuple[str, str, str]]) -> list[Fault]:
        missed = self.record.missed()
        return [
            one
            for one in specials(self.plan.seed)
            if one.cell not in done
            and missed.get(("concept", str(one)), 0) < _TRIES
            and self.plan.only in ("", "concept")
        ]

    def left_s(self) -> float:
        """Seconds until the campaign's time is over."""
        return self.plan.minutes * 60 - (time.monotonic() - self.began_s)

    def _tell(self, told: rounds.Told) -> None:
        found = table.summary(self.record.valid())
        injected, bad = found["injected"], "; ".join(told.bad)
        here = sum(len(one["injected"]) for one in [told.as_json()])
        self.console.print(
            f"{injected} of {self.plan.count} faults, {self.left_s() / 60:.0f} min left: "
            f"{told.state.lower() or 'no job'} after {here} faults in {told.seconds:.0f} s"
            + (f", {len(told.missed)} came too late" if told.missed else "")
            + (f", void: {told.void}" if told.void else "")
        )
        if bad:
            self.console.print(f"[red]{bad}[/red]")
            self.console.print(f"again: make faults REPLAY='{told.text}'", soft_wrap=True)
