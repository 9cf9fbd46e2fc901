"""The faults: what is done to whom in which stage, drawn by a seed, and written as one short text.

gateway.kill@fit+0.31      kill -9 of the gateway after a third of the stage's usual time
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

SERVICES = ("gateway", "teacher", "concepts", "student", "redis", "postgres")
KINDS = ("kill", "term", "stop", "cut")
"""kill -9; SIGTERM; SIGSTOP for 15 s; connections reset, or swallowed for 8 s."""
LONG_STOP, FLUSH = "stop60", "flush"
"""SIGSTOP for 60 s; FLUSHALL."""
CREATE = "create"
"""The moment at which the job is asked for: it is there once, whatever happens to the call."""
CONCEPT_STAGES = (
    CREATE,
    "ingest",
    "check",
    "estimate",
    "teacher_outputs",
    "regions",
    "concepts",
    "fit",
    "publish",
)
OTHER_STAGES: dict[str, tuple[str, ...]] = {
    "classifier": ("teacher_outputs", "teacher_views", "fit"),
    "prune": ("importance", "targets", "rank", "fit"),
    "language": ("targets", "fit"),
    "tuneshift": ("rounds", "fit"),
}
STAGES = {"concept": CONCEPT_STAGES, **OTHER_STAGES}
SPECIAL = (
    ("gateway", "lost", ("teacher_outputs", "concepts", "fit")),
    ("gateway", "fenced", ("regions", "concepts", "fit")),
    ("gateway", "upgrade", ("regions", "fit")),
    ("suite", "roll", ("regions",)),
    ("network", "part", ("estimate", "regions", "concepts")),
    ("clock", "jump", ("regions", "fit")),
    ("disk", "full", ("teacher_outputs", "regions", "concepts", "fit", "publish")),
)
"""What needs a wide world: the gateway that runs the job dies for good, or stands still until
another one has the job; all gateways come back as another version; every service is started anew in
turn; the concepts service's network is parted from the others'; the gateway's clock jumps; the disk
is full."""
_TEXT = re.compile(r"([a-z]+)\.([a-z0-9]+)@([a-z_]+)\+([0-9.]+)")
_LONG_AT = "teacher_outputs"
_SLOW = 3
"""SIGSTOPs a job at most."""
_OTHER_SHARE = 0.5
"""Share of the matrix of the other job kinds that is drawn."""


@dataclass(frozen=True)
class Fault:
    """One fault: `share` is how far into the stage it comes, of the time that the stage takes
    undisturbed."""

    service: str
    kind: str
    stage: str
    share: float = 0.0

    def __str__(self) -> str:
        return f"{self.service}.{self.kind}@{self.stage}+{self.share:.3f}"

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Return the fault that `str` wrote. Raises ValueError."""
        found = _TEXT.fullmatch(text)
        if found is None:
            raise ValueError(f"{text!r} is not a fault such as gateway.kill@fit+0.310")
        return cls(found[1], found[2], found[3], float(found[4]))

    @property
    def special(self) -> bool:
        """Whether it needs a wide world."""
        return any((self.service, self.kind) == one[:2] for one in SPECIAL)

    @property
    def cell(self) -> tuple[str, str, str]:
        """Its place in the matrix."""
        return self.service, self.kind, self.stage


@dataclass(frozen=True)
class Round:
    """The faults of one job, in the order of its stages."""

    number: int
    job: str
    """Kind of the job."""
    seed: int
    """Of the job: what student is expected depends on it."""
    faults: tuple[Fault, ...]

    def __str__(self) -> str:
        return f"{self.job}:{self.seed}:" + ",".join(str(one) for one in self.faults)

    @classmethod
    def parse(cls, text: str) -> Round:
        """Return the round that `str` wrote. Raises ValueError."""
        job, seed, faults = text.split(":")
        found = tuple(Fault.parse(one) for one in faults.split(",") if one)
        return cls(0, job, int(seed), found)


def specials(seed: int) -> list[Fault]:
    """The faults that need a wide world."""
    rng = random.Random(f"special {seed}")
    found = [
        Fault(service, kind, stage, round(rng.random(), 3))
        for service, kind, stages in SPECIAL
        for stage in stages
    ]
    rng.shuffle(found)
    return found


def pick_special(pending: Sequence[Fault]) -> list[Fault]:
    """Take the next faults for one job in a wide world; some bear no other beside them."""
    taken = list(pending[:1])
    for one in pending[1:]:
        known = {other.service for other in taken}
        if one.service not in (*known, "disk") and "disk" not in known:
            taken.append(one)
    order = CONCEPT_STAGES
    return sorted(taken, key=lambda one: (order.index(one.stage), one.share))


def matrix(job: str) -> Iterator[Fault]:
    """Every fault of a job kind once."""
    for stage in STAGES[job]:
        for service in SERVICES if job == "concept" else _needed(job):
            for kind in KINDS:
                yield Fault(service, kind, stage)
        if job == "concept":
            yield Fault("redis", FLUSH, stage)
    if job == "concept":
        for service in SERVICES:
            yield Fault(service, LONG_STOP, _LONG_AT)


def _needed(job: str) -> tuple[str, ...]:
    return tuple(one for one in SERVICES if one not in ("concepts", "redis"))


def draw(seed: int) -> dict[str, list[Fault]]:
    """The faults of a campaign by job kind, in the order in which they are to be injected."""
    rng = random.Random(seed)
    found: dict[str, list[Fault]] = {}
    for job in STAGES:
        cells = list(matrix(job))
        rng.shuffle(cells)
        if job != "concept":
            cells = cells[: max(1, round(len(cells) * _OTHER_SHARE))]
        found[job] = [replace(one, share=round(rng.random(), 3)) for one in cells]
    return found


def pick(job: str, pending: Sequence[Fault], most: int) -> list[Fault]:
    """Take the next faults for one job from those that are pending: a service again only some
    stages later, so that it is back by then, and few that last long; stages in order."""
    order = STAGES[job]
    taken: list[Fault] = []
    for one in pending:
        same = [other for other in taken if other.service == one.service]
        near = any(abs(order.index(o.stage) - order.index(one.stage)) < 3 for o in same)
        slow = [other for other in taken if other.kind in ("stop", LONG_STOP)]
        if not near and (one.kind not in ("stop", LONG_STOP) or len(slow) < _SLOW):
            taken.append(one)
        if len(taken) == most:
            break
    return sorted(taken, key=lambda one: (order.index(one.stage), one.share))
