"""What the child process of a training run does.

It writes only while its epoch is the newest, and rings where there is news. Its result or error is
in the run's folder before it ends.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from stillhouse.student.v1 import student_pb2

from services.common import callers, logs
from services.common.blobs import BlobStore
from services.common.callers import Caller
from services.common.errors import Internal, OutOfSpace, StillhouseError, is_out_of_space
from services.student.ranks import join
from services.student.recipes import Surroundings, Training, train
from services.student.rundir import Fenced, RunDir, Writer

Ring = Callable[[], None]
PEERS_S = 5.0
"""A rank that has lost another one fails too. It says so only after this time, in which the one at
fault says what it was, and the supervisor ends them all."""


@dataclass(frozen=True)
class Assignment:
    """A run to train, and what the worker needs for it."""

    run_dir: Path
    epoch: int
    blob_url: str
    threads: int
    surroundings: Surroundings
    log_level: str
    log_json: bool
    caller: Caller = Caller()
    """Whom the run is for: the ids of its log lines."""
    rank: int = 0
    world: int = 1
    """Processes of the run; each has an assignment of its own."""


def work(assignment: Assignment, ring: Ring) -> int:
    """Train, and write the outcome. Returns 0 where one was written, also for a failed run. Ranks
    but the first write errors alone, and return 0 without one."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    logs.configure("student-worker", level=assignment.log_level, json=assignment.log_json)
    callers.bind(assignment.caller)
    writer = Writer(RunDir(assignment.run_dir), assignment.epoch)
    try:
        if assignment.rank == 0:
            writer.progress("starting", 0, 0)
            ring()
        writer.finish(_train(writer, assignment, ring))
    except Fenced:
        return 1
    except StillhouseError as error:
        writer.finish(error.to_status())
        return 1 if assignment.rank else 0
    except Exception as error:
        run = str(assignment.run_dir)
        logs.get(__name__).error("training failed", run=run, exc_info=error)
        if assignment.world > 1:
            time.sleep(PEERS_S)
        writer.finish(_explained(error).to_status())
        return 1 if assignment.rank else 0
    return 0


def _explained(error: Exception) -> StillhouseError:
    """What the caller hears of an error of a library."""
    if is_out_of_space(error):
        return OutOfSpace(
            "the disk of the student service's runs, cache or blob store is full; make room and "
            "start the job again: it goes on from its last checkpoint"
        )
    kind = type(error).__name__
    return Internal(f"training failed unexpectedly ({kind}); see the service's log")


def _train(writer: Writer, assignment: Assignment, ring: Ring) -> student_pb2.TrainResult:
    from services.torch_common.threads import set_threads

    set_threads(max(1, assignment.threads // assignment.world))
    request = writer.run.recipe()
    if request is None:
        raise Internal("the run has no recipe")
    around, rank, world = assignment.surroundings, assignment.rank, assignment.world
    ranks = join(rank, world, writer.run.meeting(writer.epoch), around.device)
    around = replace(around, device=ranks.device)
    blobs = BlobStore(assignment.blob_url)
    training = Training(request.project, blobs, writer, ring, around, ranks)
    return train(training, request)
