"""What the child process of a training run does.

It writes only while its epoch is the newest, and rings where there is news. Its result or error is
in the run's folder before it ends.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stillhouse.student.v1 import student_pb2

from services.common import logs
from services.common.blobs import BlobStore
from services.common.errors import Internal, OutOfSpace, StillhouseError, is_out_of_space
from services.student.recipes import Surroundings, Training, train
from services.student.rundir import Fenced, RunDir, Writer

Ring = Callable[[], None]


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


def work(assignment: Assignment, ring: Ring) -> int:
    """Train, and write the outcome. Returns 0 where one was written, also for a failed run."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    logs.configure("student-worker", level=assignment.log_level, json=assignment.log_json)
    writer = Writer(RunDir(assignment.run_dir), assignment.epoch)
    try:
        writer.progress("starting", 0, 0)
        ring()
        writer.finish(_train(writer, assignment, ring))
    except Fenced:
        return 1
    except StillhouseError as error:
        writer.finish(error.to_status())
    except Exception as error:
        run = str(assignment.run_dir)
        logs.get(__name__).error("training failed", run=run, exc_info=error)
        writer.finish(_explained(error).to_status())
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

    set_threads(assignment.threads)
    request = writer.run.recipe()
    if request is None:
        raise Internal("the run has no recipe")
    blobs = BlobStore(assignment.blob_url)
    training = Training(request.project, blobs, writer, ring, assignment.surroundings)
    return train(training, request)
