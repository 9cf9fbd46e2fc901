"""Runs Python code that nobody trusts, in a sandbox of the operating system (Linux).

A run has namespaces of its own for mounts, processes, network and the rest, a root file system of
the interpreter alone, an empty environment, an unprivileged user, a system-call filter without
processes and sockets, resource limits, and an end by the clock. `open_sandbox` attacks it before it
hands it out, and refuses where one attack gets through.

It guards the host. An answer that sets out to cheat the tests of its own process can do so.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import weakref
from dataclasses import dataclass
from pathlib import Path

from services.common.errors import Precondition

MEMORY_BYTES = 512 << 20
FILE_BYTES = 8 << 20
OUTPUT_BYTES = 64 << 10
MAX_CODE_CHARS = 200_000
_GRACE_S = 3.0
"""For starting an interpreter; the time that is asked for counts inside."""
_PIPE_BYTES = 1 << 20
_SET_PIPE_SIZE = 1031
_BROKEN_EXIT = 97
_LATE = "it ran out of time"
_FOLDER = Path(__file__).parent
_ROOM = _FOLDER / "sandbox_room.py"
_RUNNER = _FOLDER / "sandbox_runner.py"
_SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")


@dataclass(frozen=True)
class Outcome:
    """How a run ended; `reason` says why it did not pass, for people."""

    passed: bool
    reason: str = ""


class Sandbox:
    """Runs code. Thread-safe; every run is a process of its own. See `open_sandbox`."""

    def __init__(self, *, by_user_namespace: bool | None = None) -> None:
        """`by_user_namespace` None takes the way that the process's user has."""
        self._root = tempfile.mkdtemp(prefix="sandbox-")
        weakref.finalize(self, shutil.rmtree, self._root, ignore_errors=True)
        unprivileged = os.geteuid() != 0
        self._settings = {
            "root": self._root,
            "python": os.path.realpath(sys.executable),
            "paths": _interpreter_paths(),
            "runner": _RUNNER.read_text(encoding="utf-8"),
            "user_namespace": unprivileged if by_user_namespace is None else by_user_namespace,
            "memory_bytes": MEMORY_BYTES,
            "file_bytes": FILE_BYTES,
        }

    def run(self, code: str, tests: str, *, timeout_s: float) -> Outcome:
        """Run `code`, then `tests` after it; functions `test_*` and test cases are called.

        Blocking, at most `timeout_s` and a few seconds. Raises Precondition where the sandbox
        itself cannot be set up.
        """
        if len(code) + len(tests) > MAX_CODE_CHARS:
            return Outcome(False, f"the code is over {MAX_CODE_CHARS:,} characters")
        os.makedirs(self._root, mode=0o700, exist_ok=True)  # hosts clean up temporary folders
        token = secrets.token_hex(16)
        job = {"code": code, "tests": tests, "token": token}
        text = json.dumps(job).encode("ascii")
        if len(text) > _PIPE_BYTES:
            return Outcome(False, "the code is too large")
        with _Pipe() as entry, _Pipe() as told:
            fcntl.fcntl(entry.write, _SET_PIPE_SIZE, _PIPE_BYTES)
            os.write(entry.write, text)
            settings = {**self._settings, "told": told.write, "timeout_s": timeout_s}
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_ROOM)],
                stdin=entry.read,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=[told.write, entry.read],
                env={"SANDBOX": json.dumps(settings)},
                cwd="/",
                start_new_session=True,
            )
            entry.close()
            told.close_write()
            try:
                output, said, ended = _follow(process, told.read, timeout_s + _GRACE_S)
            finally:
                _end(process)
        return _outcome(process.returncode, output, said, token, ended)


class NoSandbox(Sandbox):
    """Stands where a sandbox is wanted and there is none; says what is missing."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def run(self, code: str, tests: str, *, timeout_s: float) -> Outcome:
        """Raise Precondition."""
        raise Precondition(self.reason, differences={"sandbox": self.reason})


def sandbox_or_reason() -> Sandbox:
    """Return a sandbox, or a NoSandbox that says why there is none. Blocking, some seconds."""
    try:
        return open_sandbox()
    except Precondition as error:
        return NoSandbox(error.message)


def open_sandbox(sandbox: Sandbox | None = None) -> Sandbox:
    """Return a sandbox that withstood what it is there to withstand.

    Raises Precondition with what is missing.
    """
    if sys.platform != "linux":
        raise Precondition("no sandbox: it needs Linux")
    found = sandbox or Sandbox()
    problems = probe(found)
    if problems:
        raise Precondition(
            f"no sandbox to run code in: {'; '.join(problems)}",
            differences={"sandbox": "; ".join(problems)},
        )
    return found


def probe(sandbox: Sandbox) -> list[str]:
    """Attack a sandbox for real, and return what got through or does not work."""
    try:
        works = sandbox.run("def double(x): return 2 * x", "assert double(21) == 42", timeout_s=10)
    except Precondition as error:
        return [error.message]
    if not works.passed:
        return [f"plain code does not run: {works.reason}"]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as secret, socket.socket() as listener:
        secret.write("secret")
        secret.flush()
        os.chmod(secret.name, 0o644)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        attacks = _attacks(secret.name, listener.getsockname()[1])
        found = {name: sandbox.run(code, "", timeout_s=10.0) for name, code in attacks.items()}
    found["never ends"] = sandbox.run("while True: pass", "", timeout_s=0.5)
    late = [n for n, one in found.items() if one.reason == _LATE and n != "never ends"]
    return [f"code {name}" for name, outcome in found.items() if outcome.passed] + [
        f"it cannot be told in time whether code {name}" for name in late
    ]


def _attacks(secret: str, port: int) -> dict[str, str]:
    """Return programs that end normally only where the sandbox fails."""
    return {
        "reads the caller's files": f"open({secret!r}).read()",
        "reads the system's files": "open('/etc/passwd').read()",
        "opens sockets": f"import socket; socket.create_connection(('127.0.0.1', {port}), 1)",
        "starts processes": "import os\nif os.fork() == 0: os._exit(0)",
        "runs programs": f"import os; os.execv({sys.executable!r}, ['x', '-c', 'pass'])",
        "sees other processes": "import os; os.kill(os.getpid() + 1, 0)",
        "fills memory": f"x = bytearray({4 * MEMORY_BYTES})",
        "writes large files": f"open('/tmp/x', 'wb').write(bytes({4 * FILE_BYTES}))",
        "changes its root": "open('/x', 'w')",
    }


class _Pipe:
    """Both ends of a pipe, closed at the end of the block."""

    def __enter__(self) -> _Pipe:
        self.read, self.write = os.pipe()
        return self

    def close_write(self) -> None:
        """Close the end that is written to, if it is open."""
        if self.write >= 0:
            os.close(self.write)
        self.write = -1

    def close(self) -> None:
        """Close what is open."""
        self.close_write()
        if self.read >= 0:
            os.close(self.read)
        self.read = -1

    def __exit__(self, *_: object) -> None:
        self.close()


def _interpreter_paths() -> list[str]:
    """Return the folders that an interpreter needs to start, and nothing of its environment."""
    base = os.path.realpath(sys.base_prefix)
    found = {os.path.realpath(sys.executable), sysconfig.get_path("stdlib")}
    library = sysconfig.get_config_var("LIBDIR")
    if library and os.path.realpath(library).startswith(base) and base not in ("/", "/usr"):
        found.add(os.path.realpath(library))
    return sorted(p for p in (*found, *_SYSTEM) if os.path.exists(p))


def _follow(
    process: subprocess.Popen[bytes], told: int, limit_s: float
) -> tuple[bytes, bytes, str]:
    """Read what the run prints and what its runner tells, within the limits; return both, and why
    it must be ended, empty where it ends by itself."""
    assert process.stdout is not None
    until_s = time.monotonic() + limit_s
    read = {process.stdout.fileno(): bytearray(), told: bytearray()}
    with selectors.DefaultSelector() as selector:
        for fd in read:
            selector.register(fd, selectors.EVENT_READ)
        while selector.get_map():
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                return bytes(read[process.stdout.fileno()]), bytes(read[told]), _LATE
            for key, _ in selector.select(left_s):
                chunk = os.read(key.fd, 1 << 16)
                read[key.fd] += chunk
                if not chunk:
                    selector.unregister(key.fd)
                if len(read[key.fd]) > OUTPUT_BYTES:
                    return b"", b"", "it prints too much"
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(max(until_s - time.monotonic(), 0.1))
    return bytes(read[process.stdout.fileno()]), bytes(read[told]), ""


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill whatever is left; the sandbox dies with the process that made it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _outcome(code: int, output: bytes, said: bytes, token: str, ended: str) -> Outcome:
    last = output.decode("utf-8", "replace").strip().rsplit("\n", 1)[-1][:200]
    if code == _BROKEN_EXIT and not said:
        raise Precondition(f"the sandbox cannot be set up: {last}")
    if ended:
        return Outcome(False, ended)
    try:
        found = json.loads(said)
    except (ValueError, RecursionError):  # the code can write there too
        found = {}
    if isinstance(found, dict) and found.get("token") == token and code == 0:
        return Outcome(True)
    if isinstance(found, dict) and found.get("error"):
        return Outcome(False, str(found["error"])[:200])
    if code in (128 + signal.SIGKILL, 128 + signal.SIGXCPU, 128 + signal.SIGALRM):
        return Outcome(False, _LATE)
    return Outcome(False, f"it ended before its tests did (status {code})")
