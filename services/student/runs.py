"""Supervises training runs: child processes, one or several a run, restarted once when a signal
kills one.

A run belongs to its folder, not to a call: leaving the stream does not stop it, and after a crash
of the worker or of this service the next Train with its run id resumes it from its checkpoint.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import uuid
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from google.rpc import code_pb2, status_pb2
from stillhouse.student.v1 import student_pb2

from services.common import accounting, callers, logs, metrics
from services.common.errors import Cancelled, Internal, Overloaded, PeerUnavailable
from services.common.names import check_id
from services.student import workers
from services.student.recipes import Surroundings, shares_work
from services.student.rundir import RunDir, Writer
from services.student.settings import StudentSettings
from services.student.worker import Assignment, work
from services.student.workers import Crew

_log = logs.get(__name__)
_ATTEMPTS = 2
_GOING = ".going-"
"""Begins the names of folders that are being removed; no run id begins so."""
_FINAL = (code_pb2.INVALID_ARGUMENT, code_pb2.FAILED_PRECONDITION)
"""Errors that the same recipe gives again, so that a further Train replays them."""


class Run:
    """A run whose worker this process supervises."""

    def __init__(self, folder: RunDir) -> None:
        self.folder = folder
        self.worker: Crew | None = None
        self.task: asyncio.Task[None] | None = None
        self.stopping = False
        self._news = asyncio.Event()

    @property
    def ended(self) -> bool:
        """Whether nothing will be written any more."""
        return self.task is not None and self.task.done()

    def ring(self) -> None:
        """Wake everyone who follows the run."""
        self._news.set()
        self._news = asyncio.Event()

    def news(self) -> asyncio.Event:
        """The event that the next `ring` sets; take it before reading."""
        return self._news


class RunManager:
    """The runs of this process. Use from one event loop."""

    def __init__(self, settings: StudentSettings) -> None:
        self._settings = settings
        self._slots = asyncio.Semaphore(settings.max_runs)
        self._live: dict[Path, Run] = {}
        self._closing = False
        workers.prepare(settings.threads)

    async def train(
        self, recipe: student_pb2.TrainRequest, after: int
    ) -> AsyncIterator[student_pb2.TrainResponse]:
        """Start, resume or attach to a run, and yield its events after sequence number `after`.

        The last event, result or error, always comes. Raises InvalidInput, Precondition for another
        recipe under the same id, Overloaded, PeerUnavailable where the service stops meanwhile.
        """
        folder = RunDir.of(self._settings.runs_dir, recipe.project, recipe.run_id)
        await asyncio.to_thread(folder.create, recipe)
        run = self._live.get(folder.path)
        if run is None and not _is_final(await asyncio.to_thread(folder.outcome)):
            run = self._start(folder)
        async for event in _follow(folder, run, after):
            yield event

    async def stop(self, project: str, run_id: str) -> bool:
        """Stop a run: SIGTERM, then SIGKILL. Returns whether one was running."""
        folder = RunDir.of(self._settings.runs_dir, project, run_id)
        run = self._live.get(folder.path)
        if run is None or run.task is None:
            return False
        run.stopping = True
        if run.worker is None:
            run.task.cancel()  # it waits for a slot
        else:
            await self._terminate(run.worker)
        await asyncio.wait([run.task])
        return True

    async def remove(self, project: str, prefix: str, *, dry_run: bool = False) -> int:
        """Stop the runs whose ids begin so and remove their folders; return how many there were.

        A run that is asked for meanwhile begins anew. Raises InvalidInput.
        """
        root = self._settings.runs_dir / check_id(project, field="project")
        if prefix:
            RunDir.of(self._settings.runs_dir, project, prefix)
        found = await asyncio.to_thread(_folders, root, prefix)
        left = await asyncio.to_thread(_folders, root, _GOING)
        count = len(found) + (0 if prefix else len(left))
        if dry_run:
            return count
        for folder in found:
            await self.stop(project, folder.name)
            await asyncio.to_thread(_remove, folder)
            self._live.pop(folder, None)
        for folder in left if prefix else [root]:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        return count

    async def close(self) -> None:
        """End all workers without an outcome: their runs resume when asked for again."""
        self._closing = True
        for run in list(self._live.values()):
            if run.worker is not None:
                await self._terminate(run.worker)
            if run.task is not None:
                run.task.cancel()
                await asyncio.wait([run.task])

    def _start(self, folder: RunDir) -> Run:
        if self._closing:
            raise PeerUnavailable("the service is shutting down")
        if folder.path in self._live:  # another call was quicker while we looked at the files
            return self._live[folder.path]
        limit = self._settings.max_runs + self._settings.max_waiting_runs
        if len(self._live) >= limit:
            metrics.refuse("training", 1, reason=Overloaded.reason)
            raise Overloaded(f"{len(self._live)} runs are queued; the limit is {limit}")
        run = self._live[folder.path] = Run(folder)
        run.task = asyncio.create_task(self._supervise(run), name=f"run {folder.path.name}")
        return run

    async def _supervise(self, run: Run) -> None:
        try:
            writer = await asyncio.to_thread(run.folder.next_writer)
            if self._slots.locked():
                await asyncio.to_thread(writer.progress, "waiting for a free slot", 0, 0)
                run.ring()
            with _counted("waiting"):
                await self._slots.acquire()
            try:
                with _counted("active"):
                    await self._attempts(run)
            finally:
                self._slots.release()
        except asyncio.CancelledError:
            if run.stopping:
                await self._fail(run, Cancelled("the run was stopped").to_status())
        except Exception as error:
            _log.error("run cannot be supervised", run=str(run.folder.path), exc_info=error)
            await self._fail(run, Internal("the run could not be started").to_status())
        finally:
            self._live.pop(run.folder.path, None)
            asyncio.get_running_loop().call_soon(run.ring)

    async def _attempts(self, run: Run) -> None:
        code = 0
        for attempt in range(1, _ATTEMPTS + 1):
            writer = await asyncio.to_thread(run.folder.next_writer)
            code = await self._work(run, writer)
            if await asyncio.to_thread(run.folder.outcome) is not None or self._closing:
                return
            if run.stopping:
                await self._fail(run, Cancelled("the run was stopped").to_status())
                return
            _log.warning("worker ended early", run=run.folder.path.name, code=code, attempt=attempt)
            if code >= 0 and code != workers.LOST:
                break
        await self._fail(run, _early_end(code).to_status())

    async def _work(self, run: Run, writer: Writer) -> int:
        """Run the processes of one attempt to their end."""
        recipe = await asyncio.to_thread(run.folder.recipe)
        world = self._settings.processes if recipe and shares_work(recipe) else 1
        assignment = self._assignment(run.folder, writer.epoch)
        ranks = [replace(assignment, rank=rank, world=world) for rank in range(world)]
        run.worker = await Crew.start(work, ranks)
        if run.stopping:  # asked for while the process was being made
            run.worker.signal(signal.SIGKILL)
        devices = world if self._settings.device.startswith("cuda") else 1
        try:
            async with accounting.training(run.folder.path.parent.name, devices=devices):
                return await run.worker.wait(run.ring)
        finally:
            run.worker = None

    def _assignment(self, folder: RunDir, epoch: int) -> Assignment:
        settings = self._settings
        return Assignment(
            run_dir=folder.path.absolute(),
            epoch=epoch,
            blob_url=settings.blob_url,
            threads=settings.threads,
            surroundings=Surroundings(
                cache_dir=settings.cache_dir.absolute(),
                catalogue=settings.catalogue.absolute() if settings.catalogue else None,
                teacher_address=settings.teacher_address,
                tls=settings.peer_tls,
                device=settings.device,
                precision=settings.precision,
                python_tests=settings.run_python_tests,
                max_message_bytes=settings.max_message_bytes,
                max_image_bytes=settings.max_image_bytes,
                max_image_pixels=settings.max_image_pixels,
            ),
            log_level=settings.log_level,
            log_json=settings.log_json,
            caller=callers.current(),
        )

    async def _terminate(self, child: Crew) -> None:
        child.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(self._settings.stop_grace_s):
                await child.ended()
        except TimeoutError:
            child.signal(signal.SIGKILL)

    async def _fail(self, run: Run, status: status_pb2.Status) -> None:
        writer = await asyncio.to_thread(run.folder.next_writer)
        await asyncio.to_thread(writer.finish, status)


def _counted(state: str) -> AbstractContextManager[None]:
    """Count a run in a state while a block runs."""
    return metrics.TRAINING_RUNS.labels(state).track_inprogress()


def _folders(root: Path, prefix: str) -> list[Path]:
    """Return the runs whose ids begin so, or what is left of runs where `prefix` is _GOING."""
    if not root.is_dir():
        return []
    named = (one for one in root.iterdir() if one.name.startswith(prefix))
    return sorted(one for one in named if one.name.startswith(_GOING) == (prefix == _GOING))


def _remove(folder: Path) -> None:
    """Remove a run. Its name goes first, so that nobody takes what a kill leaves for a run."""
    going = folder.with_name(f"{_GOING}{uuid.uuid4().hex}")
    with contextlib.suppress(FileNotFoundError):  # another call was first
        folder.rename(going)
        shutil.rmtree(going, ignore_errors=True)


def _is_final(outcome: student_pb2.TrainResponse | None) -> bool:
    if outcome is None:
        return False
    return outcome.WhichOneof("event") == "result" or outcome.error.code in _FINAL


def _early_end(code: int) -> Internal:
    if code >= 0:
        return Internal(f"the worker ended with status {code} and no result; see the service's log")
    name = signal.Signals(-code).name
    hint = "; the machine may be out of memory" if -code == signal.SIGKILL else ""
    return Internal(f"the worker was killed by {name}, {_ATTEMPTS} times{hint}")


async def _follow(
    folder: RunDir, run: Run | None, after: int
) -> AsyncIterator[student_pb2.TrainResponse]:
    offset = 0
    while True:
        over = run is None or run.ended
        news = None if run is None else run.news()
        events, offset = await asyncio.to_thread(folder.events, offset)
        for event in events:
            if event.sequence > after:
                yield event
        if over:
            break
        assert news is not None
        await news.wait()
    outcome = await asyncio.to_thread(folder.outcome)
    if outcome is None:
        raise PeerUnavailable("the service stopped while the run went on; call Train again")
    yield outcome
