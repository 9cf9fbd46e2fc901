"""The sandbox against programs that mean harm; where there is none, that it says so."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest

from services.common import sandbox_runner
from services.common.errors import Precondition
from services.common.sandbox import (
    MAX_CODE_CHARS,
    NoSandbox,
    Outcome,
    Sandbox,
    open_sandbox,
    probe,
    sandbox_or_reason,
)

LATEST_S = 10.0
WRONG = "def test(self): assert f() == 3"
LIBC = "import ctypes; c = ctypes.CDLL(None)"
DEAF = "import signal\nfor n in range(1, 65):\n  try: signal.signal(n, signal.SIG_IGN)\n"
DEAF += "  except (OSError, ValueError): pass\nwhile True: pass"


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    """An attacked and proven sandbox; on a host without one the tests end at its refusal."""
    found = sandbox_or_reason()
    if isinstance(found, NoSandbox):
        with pytest.raises(Precondition, match="no sandbox to run code in: "):
            found.run("", "", timeout_s=1)
        pytest.skip(found.reason)
    return found


def test_right_code_passes_and_wrong_code_says_why(sandbox: Sandbox) -> None:
    code = "import math\ndef area(r): return math.pi * r * r"
    assert sandbox.run(code, "assert round(area(1), 2) == 3.14", timeout_s=5).passed
    wrong = sandbox.run(code, "assert area(1) == 3, 'not three'", timeout_s=5)
    assert (wrong.passed, wrong.reason) == (False, "AssertionError: not three")
    assert "SyntaxError" in sandbox.run("def", "", timeout_s=5).reason
    assert "exits before" in sandbox.run("raise SystemExit", "", timeout_s=5).reason
    assert not sandbox.run("import os; os._exit(0)", "assert False", timeout_s=5).passed
    assert not sandbox.run("x" * (MAX_CODE_CHARS + 1), "", timeout_s=5).passed


@pytest.mark.parametrize(
    ("tests", "passed"),
    [
        ("def test_two(): assert f() == 2", True),
        ("def test_two(): assert f() == 3", False),
        ("import unittest\nclass T(unittest.TestCase):\n  def test(self): assert f() == 2", True),
        ("import unittest\nclass T(unittest.TestCase):\n  def test(self): assert f() == 3", False),
        ("class TestF:\n  def test_two(self): assert f() == 2", True),
        ("class TestF:\n  def test_two(self): assert f() == 3", False),
        ("async def test_two(): assert f() == 2", False),
        ("def g(x: int): pass\nassert g.__annotations__ == {'x': int}", True),
        (
            f"import unittest\nclass T(unittest.TestCase):\n  {WRONG}\nunittest.main(argv=['x'])",
            False,
        ),
    ],
)
def test_test_functions_and_cases_are_run(sandbox: Sandbox, tests: str, passed: bool) -> None:
    assert sandbox.run("def f(): return 2", tests, timeout_s=5).passed == passed


def test_tests_of_the_same_name_as_the_answers_own_are_run(sandbox: Sandbox) -> None:
    code = "def f(): return 2\ndef test_two(): pass"
    assert not sandbox.run(code, "def test_two(): assert f() == 3", timeout_s=5).passed


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("while True: pass", "time"),
        ("import time\nwhile True: time.sleep(1)", "time"),
        (DEAF, "time"),
        ("open('/etc/passwd').read()", "FileNotFoundError"),
        ("import os; print(os.listdir('/proc'))", "FileNotFoundError"),
        ("import os; os.fork()", "PermissionError"),
        ("import os\nwhile True:\n  try: os.fork()\n  except OSError: pass", "time"),
        ("import threading; threading.Thread(target=print).start()", "RuntimeError"),
        ("import subprocess; subprocess.run(['/bin/sh'])", "Error"),
        ("import socket; socket.socket()", "PermissionError"),
        ("import os; os.kill(os.getppid(), 9)", ""),
        ("import os; os.kill(-1, 9); os.kill(1, 9)", ""),
        ("x = []\nwhile True: x.append(bytearray(1 << 20))", ""),
        ("f = open('/tmp/x', 'wb')\nwhile True: f.write(bytes(1 << 20))", ""),
        ("n = 0\nwhile True:\n  n += 1\n  open(f'/tmp/{n}', 'wb').write(bytes(1 << 20))", "Error"),
        ("open('/usr/x', 'w')", "Error"),
        ("while True: print('x' * 10000)", "prints too much"),
        ("import os\nwhile True: os.write(3, b'{' * 10000)", "prints too much"),
        ('import os; os.write(3, b\'{"token": "guess"}\'); os._exit(0)', "ended before"),
        ("import os; os.close(0); os.close(3); os.closerange(0, 9)", "ended before"),
        ("import ctypes; ctypes.string_at(0)", "ended before"),
        ("import ctypes; ctypes.CDLL(None).unshare(0x10000000) and 1 / 0", "ZeroDivision"),
        ("import os; os._exit(97)", "ended before"),
        ("import os; os.write(3, b'[' * 60000); os._exit(0)", "ended before"),
        ("for n in range(9999): open(f'/tmp/{n}', 'w').close()", "No space left"),
        (f"{LIBC}\nassert c.shmget(0, 1 << 20, 0o1600) >= 0", "AssertionError"),
        (f"{LIBC}\nassert c.prctl(1, 0, 0, 0, 0) == 0", "AssertionError"),
        ("import sys; sys.setrecursionlimit(10**9)\ndef f(): f()\nf()", ""),
    ],
)
def test_harm_ends_in_seconds_and_is_not_accepted(sandbox: Sandbox, code: str, why: str) -> None:
    started_s = time.monotonic()
    outcome = sandbox.run(code, "raise AssertionError('the code went through')", timeout_s=0.6)
    assert not outcome.passed
    assert "went through" not in outcome.reason or why == ""
    assert why in outcome.reason, outcome
    assert time.monotonic() - started_s < LATEST_S


def test_a_planted_secret_stays_secret(sandbox: Sandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    secret.chmod(0o644)
    os.environ["PLANTED"] = "secret"
    try:
        seen = f"os.path.exists({str(secret)!r}) or os.environ.get('PLANTED')"
        assert sandbox.run("import os", f"assert not ({seen})", timeout_s=5).passed
    finally:
        del os.environ["PLANTED"]


def test_no_process_is_left(sandbox: Sandbox) -> None:
    marked, mark = _marked()
    marked.run("while True: pass", "", timeout_s=0.3)
    assert not _running(mark)


def test_no_process_outlives_the_one_that_watches_it(sandbox: Sandbox) -> None:
    """The watcher is killed as soon as too much is printed, before the time is over."""
    marked, mark = _marked()
    code = f"{LIBC}; c.prctl(1, 0, 0, 0, 0); print('x' * 70_000, flush=True)\n"
    marked.run(f"{code}import time; time.sleep(30)  # outlives", "", timeout_s=20)
    until_s = time.monotonic() + LATEST_S
    while _running(mark) and time.monotonic() < until_s:
        time.sleep(0.05)
    assert not _running(mark)


def test_a_running_sandbox_is_seen_by_its_mark(sandbox: Sandbox) -> None:
    """Else the two tests above could not fail."""
    marked, mark = _marked()
    run = threading.Thread(
        target=marked.run, args=("while True: pass", ""), kwargs={"timeout_s": 3}
    )
    run.start()
    until_s = time.monotonic() + LATEST_S
    while len(_running(mark)) < 2 and time.monotonic() < until_s:
        time.sleep(0.02)
    seen = len(_running(mark))
    run.join()
    assert seen >= 2


def _marked() -> tuple[Sandbox, str]:
    """A sandbox whose processes can be told from all others by a text that they alone hold."""
    found, mark = Sandbox(), f"mark {uuid.uuid4().hex}"
    found._settings["runner"] = f"# {mark}\n{found._settings['runner']}"
    return found, mark


def _running(mark: str) -> list[str]:
    """Return the processes that hold a mark in their arguments or environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            held = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
            if mark.encode() in held:
                found.append(folder.name)
    return found


def test_user_namespaces_serve_where_the_kernel_allows_them() -> None:
    """The way of an unprivileged service; it refuses or it withstands everything."""
    found = Sandbox(by_user_namespace=True)
    problems = probe(found)
    assert not problems or "cannot be set up" in problems[0]
    if problems:
        with pytest.raises(Precondition, match="no sandbox to run code in"):
            open_sandbox(found)


def test_a_sandbox_that_does_not_hold_is_not_handed_out() -> None:
    class Open(Sandbox):
        def run(self, code: str, tests: str, *, timeout_s: float) -> Outcome:
            return Outcome("secret" not in code)

    with pytest.raises(Precondition, match="opens sockets") as caught:
        open_sandbox(Open())
    assert "never ends" in caught.value.message

    class Dead(Sandbox):
        def run(self, code: str, tests: str, *, timeout_s: float) -> Outcome:
            return Outcome(False, "it ran out of time")

    with pytest.raises(Precondition, match="plain code does not run"):
        open_sandbox(Dead())


def test_a_broken_sandbox_is_an_error_not_a_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Sandbox()
    broken._settings["root"] = "/nowhere/at/all"
    with pytest.raises(Precondition, match="cannot be set up"):
        broken.run("", "", timeout_s=1)
    assert "cannot be set up" in probe(broken)[0]
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(Precondition, match="Linux"):
        open_sandbox(broken)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_refuses_and_allows(machine: str) -> None:
    """The program, interpreted: jumps land where they should for every system call."""
    program = sandbox_runner.filter_of(machine)
    arch = sandbox_runner._ARCH[machine]

    def verdict(number: int, arch: int) -> int:
        at, value = 0, 0
        while True:
            code, yes, no, k = program[at]
            if code == 0x20:
                value = arch if k == 4 else number
                at += 1
            elif code == 0x06:
                return k
            else:
                at += 1 + (yes if (value == k if code == 0x15 else value >= k) else no)

    denied = set(sandbox_runner._FORBIDDEN[machine]) | set(sandbox_runner._NEW)
    for number in range(460):
        wanted = 0x00050001 if number in denied else 0x7FFF0000
        assert verdict(number, arch) == (0x00050026 if number == 435 else wanted), number
    assert verdict(0, 0x40000003) == 0x80000000
    if machine == "x86_64":
        assert verdict(0x40000000 + 1, arch) == 0x00050001
