"""The files of one training run: recipe, events, checkpoint, outcome, and the fence around them.

    RUNS/{project}/{run_id}/recipe.pb       the TrainRequest, without `after_sequence`
                            epoch           number of the newest worker; older ones must not write
                            events.jsonl    one progress event per line, numbered from 1
                            checkpoint/     finished phases: a safetensors file or a folder each
                            outcome.pb      the last event: result or error
                            meeting.N       where the ranks of epoch N found one another

A worker writes under the fence: it takes the file lock, compares its epoch, writes. So a worker
that was thought dead can never write after its successor has started.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from google.protobuf.message import DecodeError
from google.rpc import status_pb2
from stillhouse.student.v1 import student_pb2

from services.common.errors import Internal, InvalidInput, Precondition
from services.common.names import check_id
from services.common.tensors import Array, pack_arrays, unpack_arrays
from services.student.ranks import ALONE, Ranks

_RUN_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_PHASE = re.compile(r"[a-z0-9_-]{1,64}")


class Fenced(RuntimeError):
    """A newer worker owns the run; this one must stop."""


class RunDir:
    """A run's folder. Reading needs no lock; writing goes through `Writer`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def of(cls, root: Path, project: str, run_id: str) -> RunDir:
        """The folder of a run. Raises InvalidInput for a name that could leave `root`."""
        check_id(project, field="project")
        if not _RUN_ID.fullmatch(run_id):
            raise InvalidInput(
                "run_id: use 1 to 128 of A-Z, a-z, 0-9, '.', '_' and '-', not starting with '.'",
                field="run_id",
            )
        return cls(root / project / run_id)

    def create(self, recipe: student_pb2.TrainRequest) -> None:
        """Store the recipe, or find the same one. Raises Precondition where another is there."""
        self.path.mkdir(parents=True, exist_ok=True)
        with self.locked():
            known = self.recipe()
            if known is None:
                _replace(self.path / "recipe.pb", recipe.SerializeToString(deterministic=True))
            elif known != recipe:
                raise Precondition(
                    f"run {self.path.name} exists with another recipe; choose another run_id",
                    differences=_differences(known, recipe),
                )

    def recipe(self) -> student_pb2.TrainRequest | None:
        """The stored recipe; None where there is none."""
        try:
            return student_pb2.TrainRequest.FromString((self.path / "recipe.pb").read_bytes())
        except FileNotFoundError:
            return None
        except DecodeError:
            raise Internal(f"{self.path}/recipe.pb is damaged") from None

    def outcome(self) -> student_pb2.TrainResponse | None:
        """The last event, where the run has ended."""
        try:
            return student_pb2.TrainResponse.FromString((self.path / "outcome.pb").read_bytes())
        except (FileNotFoundError, DecodeError):
            return None

    def events(self, offset: int = 0) -> tuple[list[student_pb2.TrainResponse], int]:
        """Progress events from byte `offset` on, and the offset behind the last whole line."""
        try:
            with (self.path / "events.jsonl").open("rb") as file:
                file.seek(offset)
                data = file.read()
        except FileNotFoundError:
            return [], 0
        whole = data[: data.rfind(b"\n") + 1]
        return [_decode(line) for line in whole.splitlines()], offset + len(whole)

    def epoch(self) -> int:
        """Number of the newest worker; 0 before the first."""
        try:
            return int((self.path / "epoch").read_text())
        except (FileNotFoundError, ValueError):
            return 0

    def next_writer(self) -> Writer:
        """Fence off every older worker; forget an error outcome, cut off a half-written event."""
        with self.locked():
            epoch = self.epoch() + 1
            _replace(self.path / "epoch", str(epoch).encode())
            outcome = self.outcome()
            if outcome is not None and outcome.WhichOneof("event") != "result":
                (self.path / "outcome.pb").unlink()
            events = self.path / "events.jsonl"
            if events.exists():
                os.truncate(events, self.events()[1])
        return Writer(self, epoch)

    def meeting(self, epoch: int) -> Path:
        """The file at which an epoch's ranks meet; those of epochs before it are removed."""
        for path in self.path.glob("meeting.*"):
            if path.suffix != f".{epoch}":
                path.unlink(missing_ok=True)
        return self.path / f"meeting.{epoch}"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run's file lock; it goes with the process, however that ends."""
        with (self.path / "lock").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


class Writer:
    """What the worker of one epoch may do to a run; every method raises Fenced once it is old."""

    def __init__(self, run: RunDir, epoch: int) -> None:
        self.run, self.epoch = run, epoch

    def progress(
        self, stage: str, done: int, total: int, metrics: Mapping[str, float] | None = None
    ) -> None:
        """Append a progress event; `metrics` are finite points of learning curves."""
        with self._fence():
            event: dict[str, object] = {"sequence": self._next(), "stage": stage}
            event |= {"done": done, "total": total}
            if metrics:
                event["metrics"] = dict(metrics)
            with (self.run.path / "events.jsonl").open("ab") as file:
                file.write(json.dumps(event).encode() + b"\n")

    def finish(self, outcome: student_pb2.TrainResult | status_pb2.Status) -> None:
        """Write the last event, unless there is one, and drop the checkpoint of a finished run."""
        with self._fence():
            if self.run.outcome() is not None:
                return
            event = student_pb2.TrainResponse(sequence=self._next())
            if isinstance(outcome, status_pb2.Status):
                event.error.CopyFrom(outcome)
            else:
                event.result.CopyFrom(outcome)
            _replace(self.run.path / "outcome.pb", event.SerializeToString())
            if event.WhichOneof("event") == "result":
                shutil.rmtree(self.run.path / "checkpoint", ignore_errors=True)

    def save(self, phase: str, arrays: dict[str, Array]) -> None:
        """Keep a finished phase; the file appears whole or not at all."""
        with self._fence():
            path = self._phase(phase)
            path.parent.mkdir(exist_ok=True)
            _replace(path, pack_arrays(arrays))

    def load(self, phase: str) -> dict[str, Array] | None:
        """The arrays of a phase that an earlier worker finished, else None."""
        try:
            return unpack_arrays(self._phase(phase).read_bytes(), what=phase)
        except (FileNotFoundError, InvalidInput):
            return None

    def save_folder(
        self, phase: str, number: int, fill: Callable[[Path], object], ranks: Ranks = ALONE
    ) -> None:
        """Keep the files that `fill` writes into an empty folder as state `number` of a phase; all
        of `ranks` fill it.

        The folder appears whole or not at all; then lower states of the phase are dropped.
        """
        parent, name = self._phase(phase).parent, f"{phase}.{number:010d}"
        partial = parent / f".{name}.{self.epoch}"
        if ranks.first:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        ranks.wait()
        try:
            fill(partial)
            ranks.wait()
            if ranks.first:
                for path in [*partial.iterdir(), partial]:
                    _sync(path)
        except Exception:  # a full disk, say: leave it no fuller
            shutil.rmtree(partial, ignore_errors=True)
            raise
        if ranks.first:
            self._publish(phase, partial, parent / name)

    def _publish(self, phase: str, partial: Path, path: Path) -> None:
        """Give a filled folder its name, and drop what came before it."""
        parent = path.parent
        with self._fence():
            shutil.rmtree(path, ignore_errors=True)
            os.replace(partial, path)
            _sync(parent)
            for path in [*self._folders(phase)[:-1], *parent.glob(f".{phase}.*")]:
                shutil.rmtree(path, ignore_errors=True)

    def newest_folder(self, phase: str) -> Path | None:
        """The highest state that `save_folder` finished of a phase, else None."""
        found = self._folders(phase)
        return found[-1] if found else None

    def _folders(self, phase: str) -> list[Path]:
        return sorted(self._phase(phase).parent.glob(f"{phase}." + "[0-9]" * 10))

    def _phase(self, phase: str) -> Path:
        if not _PHASE.fullmatch(phase):
            raise ValueError(f"phase {phase!r} is not a file name")
        return self.run.path / "checkpoint" / f"{phase}.safetensors"

    def _next(self) -> int:
        events, _ = self.run.events()
        return len(events) + 1

    @contextlib.contextmanager
    def _fence(self) -> Iterator[None]:
        with self.run.locked():
            if self.run.epoch() != self.epoch:
                raise Fenced(f"epoch {self.epoch} of run {self.run.path.name} is over")
            yield


def _decode(line: bytes) -> student_pb2.TrainResponse:
    raw = json.loads(line)
    progress = student_pb2.TrainProgress(
        stage=raw["stage"], done=raw["done"], total=raw["total"], metrics=raw.get("metrics", {})
    )
    return student_pb2.TrainResponse(sequence=raw["sequence"], progress=progress)


def _replace(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:  # a full disk, say: leave it no fuller
        partial.unlink(missing_ok=True)
        raise


def _sync(path: Path) -> None:
    """Have the disk hold a file or folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _differences(
    known: student_pb2.TrainRequest, given: student_pb2.TrainRequest
) -> dict[str, str]:
    kind, other = known.WhichOneof("recipe"), given.WhichOneof("recipe")
    if kind != other:
        return {"recipe": f"{kind} before, {other} now"}
    before, after = getattr(known, str(kind)), getattr(given, str(kind))
    names = [field.name for field in before.DESCRIPTOR.fields]
    return {
        f"{kind}.{name}": "differs"
        for name in names
        if getattr(before, name) != getattr(after, name)
    }
