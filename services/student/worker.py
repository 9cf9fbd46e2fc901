"""The child process of one training run: `python -m services.student.worker RUN_DIR --epoch N ...`.

It dies with its parent, writes only while its epoch is the newest, and says that there is news with
one byte on standard output. Its result or error is in the run's folder before it ends.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stillhouse.student.v1 import student_pb2

    from services.student.rundir import Writer

_PR_SET_PDEATHSIG = 1
_ORPHANED = 70


def die_with_parent(parent: int) -> None:
    """Let the kernel kill this process when its parent ends, also where that has just happened."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        sys.exit(_ORPHANED)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m services.student.worker", description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--epoch", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--blob-url", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--surroundings", default="{}")
    parser.add_argument("--log-level", default="INFO")
    parser.add_argument("--log-json", action="store_true")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Train, and write the outcome. Returns 0 where one was written, also for a failed run."""
    args = _arguments(argv)
    die_with_parent(args.parent)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    from services.common import logs
    from services.common.errors import Internal, StillhouseError
    from services.student.rundir import Fenced, RunDir, Writer

    logs.configure("student-worker", level=args.log_level, json=args.log_json)
    writer = Writer(RunDir(args.run_dir), args.epoch)
    try:
        writer.progress("starting", 0, 0)
        _ring()
        writer.finish(_train(writer, args))
    except Fenced:
        return 1
    except StillhouseError as error:
        writer.finish(error.to_status())
    except Exception as error:
        logs.get(__name__).error("training failed", run=str(args.run_dir), exc_info=error)
        text = f"training failed unexpectedly ({type(error).__name__}); see the service's log"
        writer.finish(Internal(text).to_status())
    return 0


def _train(writer: Writer, args: argparse.Namespace) -> student_pb2.TrainResult:
    from services.common.blobs import BlobStore
    from services.common.errors import Internal
    from services.student.recipes import Surroundings, Training, train
    from services.torch_common.threads import set_threads

    set_threads(args.threads)
    request = writer.run.recipe()
    if request is None:
        raise Internal("the run has no recipe")
    around = Surroundings.from_json(args.surroundings)
    return train(
        Training(request.project, BlobStore(args.blob_url), writer, _ring, around), request
    )


def _ring() -> None:
    sys.stdout.write(".")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
