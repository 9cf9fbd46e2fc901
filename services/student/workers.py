"""Child processes of training runs, forked from a process that has the libraries loaded.

Importing torch, transformers and peft takes longer than many runs train. multiprocessing's fork
server imports them once, beside the service and before it has any thread, and every worker starts
from there in a moment. A worker dies with the fork server and with this service.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing import connection, forkserver
from multiprocessing.context import ForkServerProcess
from typing import Any, TypeVar

T = TypeVar("T")
LOST = 255
"""Exit status of a worker whose fork server has ended."""
PRELOADED = "services.student.preloaded"
_CONTEXT = multiprocessing.get_context("forkserver")
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_FORK_SAFE = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
"""Whether there is a GPU is asked without CUDA, which a forked process could not use afterwards."""
_PR_SET_PDEATHSIG = 1
_ORPHANED = 70
_LOCK = threading.Lock()


class Worker:
    """A started child process. Use from one event loop."""

    def __init__(
        self,
        process: ForkServerProcess,
        news: asyncio.StreamReader,
        pipe: asyncio.ReadTransport,
    ) -> None:
        self._process, self._news, self._pipe = process, news, pipe
        loop = asyncio.get_running_loop()
        self._exit: asyncio.Future[int] = loop.create_future()
        loop.add_reader(process.sentinel, self._take_exit, loop)

    def _take_exit(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.remove_reader(self._process.sentinel)
        self._process.join()  # its end is what was told
        self._pipe.close()  # at the end of what it brings uvloop leaves it open
        assert self._process.exitcode is not None
        self._exit.set_result(self._process.exitcode)

    async def wait(self, ring: Callable[[], None]) -> int:
        """Call `ring` at each news until the process has ended; return its exit status, or minus
        the signal that killed it. Cancelled, it kills the process."""
        try:
            while await self._news.read(256):
                ring()
            return await asyncio.shield(self._exit)
        finally:
            self.signal(signal.SIGKILL)

    async def ended(self) -> None:
        """Wait until the process is gone."""
        await asyncio.shield(self._exit)

    def signal(self, number: int) -> None:
        """Send a signal to the process, if it is there."""
        if not self._exit.done() and self._process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, number)


class Crew:
    """The processes of one run: when one is lost, or the first has ended, they all end."""

    def __init__(self) -> None:
        self._workers: list[Worker] = []

    @classmethod
    async def start(cls, main: Callable[[T, Callable[[], None]], int], given: list[T]) -> Crew:
        """Start a process for each of `given`; the first one is whom to listen to."""
        crew = cls()
        try:
            for one in given:
                crew._workers.append(await start(main, one))
        except BaseException:
            crew.signal(signal.SIGKILL)
            raise
        return crew

    async def wait(self, ring: Callable[[], None]) -> int:
        """Call `ring` at each news; returns when all are gone, with the exit status of the first
        process, or that with which another one failed. Cancelled, it kills all."""
        first, *_ = tasks = [asyncio.create_task(one.wait(ring)) for one in self._workers]
        pending: set[asyncio.Task[int]] = set(tasks)
        try:
            while not first.done():
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                failed = [task.result() for task in done if task is not first and task.result()]
                if failed:
                    return failed[0]
            return first.result()
        finally:
            self.signal(signal.SIGKILL)
            await asyncio.gather(*tasks, return_exceptions=True)

    async def ended(self) -> None:
        """Wait until all processes are gone."""
        await asyncio.gather(*(one.ended() for one in self._workers))

    def signal(self, number: int) -> None:
        """Send a signal to every process that is there."""
        for one in self._workers:
            one.signal(number)


def prepare(threads: int) -> None:
    """Let the fork server load the libraries, in the background. Thread-safe, returns at once."""
    numbers = dict.fromkeys(_THREADS, str(threads))
    with _LOCK, _environment(numbers | _FORK_SAFE):
        _CONTEXT.set_forkserver_preload([PRELOADED])
        forkserver.ensure_running()


async def start(main: Callable[[T, Callable[[], None]], int], given: T) -> Worker:
    """Run `main(given, ring)`, a function of a module, in a new process; `ring()` is news there."""
    receiver, sender = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_run, args=(main, given, sender), daemon=True)
    starting = asyncio.create_task(asyncio.to_thread(_start, process))
    try:
        await asyncio.shield(starting)
    except asyncio.CancelledError:
        await starting  # the thread goes on: nobody would end what it starts
        process.kill()
        raise
    finally:
        sender.close()
    reader = asyncio.StreamReader()
    pipe = os.fdopen(os.dup(receiver.fileno()), "rb", buffering=0)
    receiver.close()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), pipe
    )
    return Worker(process, reader, transport)


def _start(process: ForkServerProcess) -> None:
    with _LOCK:
        process.start()


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set variables for the fork server, whose libraries read them when it imports them."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _run(
    main: Callable[[T, Callable[[], None]], int], given: T, sender: connection.Connection
) -> None:
    """What the child does. Its standard output is the service's, which says where it listens."""
    _die_with_the_service()
    os.dup2(2, 1)
    descriptor = sender.fileno()
    sys.exit(main(given, lambda: _write(descriptor)))


def _write(descriptor: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody listens any more
        os.write(descriptor, b".")


def _die_with_the_service() -> None:
    """End this process when the fork server ends, which the kernel sees to, or the service does."""
    libc: Any = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    service = multiprocessing.parent_process()
    assert service is not None

    def watch() -> None:
        connection.wait([service.sentinel])
        os._exit(_ORPHANED)

    threading.Thread(target=watch, name="service", daemon=True).start()
