"""Runs untrusted code inside the room: first it gives up what is left, then it runs code and tests.

Passed to an interpreter as text (`-c`); the standard library alone. The job is JSON on standard
input, the verdict is JSON on descriptor 3.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import types
from typing import Any

TOLD = 3
_PR_SET_SECCOMP, _MODE_FILTER = 22, 2
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_EPERM, _ENOSYS = 1, 38
_CLONE3 = 435
_X32 = 0x40000000
_NEW = (425, 426, 427, 428, 429, 430, 431, 432, 438, 442, 447)
"""io_uring, the new mount calls, pidfd_getfd and memfd_secret have one number everywhere."""
_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_FORBIDDEN = {
    # Processes and programs; sockets; tracing; mounts and namespaces; keys; kernel modules and bpf;
    # files by handle; clocks, swap and reboot; prctl, which could outlive the room; shared memory,
    # semaphores, message queues and asynchronous I/O, which no limit of a process counts.
    "x86_64": (56, 57, 58, 59, 322, 41, 42, 53, 101, 310, 311, 298, 165, 166, 155, 161, 272, 308)
    + (248, 249, 250, 175, 176, 313, 246, 320, 321, 323, 303, 304, 319, 164, 227, 167, 169)
    + (154, 172, 173, 163, 179, 157, 29, 30, 31, 64, 65, 66, 67, 68, 69, 70, 71, 220)
    + (206,),
    "aarch64": (220, 221, 281, 198, 199, 203, 117, 270, 271, 241, 40, 39, 41, 51, 97, 268)
    + (217, 218, 219, 105, 106, 273, 104, 294, 280, 282, 264, 265, 279, 170, 112, 224, 142)
    + (89, 60, 167, 194, 195, 196, 197, 190, 191, 192, 193, 186, 187, 188, 189, 0),
}


class _Instruction(ctypes.Structure):
    _fields_ = [
        ("code", ctypes.c_uint16),
        ("jt", ctypes.c_uint8),
        ("jf", ctypes.c_uint8),
        ("k", ctypes.c_uint32),
    ]


class _Program(ctypes.Structure):
    _fields_ = [("len", ctypes.c_uint16), ("filter", ctypes.POINTER(_Instruction))]


def filter_of(machine: str) -> list[tuple[int, int, int, int]]:
    """Return the system-call filter of a machine as (code, jump if true, if false, value).

    Raises KeyError for a machine whose call numbers are not known.
    """
    program = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, _ARCH[machine]), (_RETURN, 0, 0, _KILL)]
    program += [(_LOAD, 0, 0, 0), (_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _ERRNO | _ENOSYS)]
    if machine == "x86_64":
        program += [(_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _ERRNO | _EPERM)]
    for number in (*_FORBIDDEN[machine], *_NEW):
        program += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | _EPERM)]
    return [*program, (_RETURN, 0, 0, _ALLOW)]


def forbid() -> None:
    """Put the filter in force. Raises OSError."""
    parts = filter_of(os.uname().machine)
    instructions = (_Instruction * len(parts))(*(_Instruction(*part) for part in parts))
    program = _Program(len(parts), instructions)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program), 0, 0) < 0:
        raise OSError(ctypes.get_errno(), "seccomp")


def run(job: dict[str, Any]) -> None:
    """Run code and tests as one module. Raises whatever they raise."""
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    names = module.__dict__
    try:
        exec(compile(job["code"], "answer.py", "exec", dont_inherit=True), names)
    except SystemExit as error:
        raise RuntimeError("the answer exits before its tests") from error
    before = dict(names)
    try:
        exec(compile(job["tests"], "tests.py", "exec", dont_inherit=True), names)
    except SystemExit as error:  # as unittest.main ends
        if error.code:
            raise AssertionError("the tests failed") from None
    # By value: an answer may have tests of the same names.
    _call({n: value for n, value in names.items() if n not in before or value is not before[n]})


def _call(added: dict[str, Any]) -> None:
    """Call the test functions that the tests define, and run their classes of tests."""
    unittest = sys.modules.get("unittest")
    for name, value in added.items():
        if name.startswith("test") and isinstance(value, types.FunctionType):
            _call_one(value)
        is_case = unittest is not None and _is_class(value, unittest.TestCase)
        if name.startswith("Test") and isinstance(value, type) and not is_case:
            for method in dir(value):
                if method.startswith("test"):
                    _call_one(getattr(value(), method))
    if unittest is None:
        return
    for value in added.values():
        if _is_class(value, unittest.TestCase):
            result = unittest.TestResult()
            unittest.defaultTestLoader.loadTestsFromTestCase(value).run(result)
            if not result.wasSuccessful():
                raise AssertionError((result.failures + result.errors)[0][1][-150:])


def _call_one(test: Any) -> None:
    """Call a test. Raises what it raises, TypeError for one that is not over when it returns."""
    if isinstance(test(), types.CoroutineType | types.GeneratorType):
        raise TypeError("a test is neither async nor a generator")


def _is_class(value: object, base: type) -> bool:
    return isinstance(value, type) and issubclass(value, base)


def main() -> None:
    """Read the job, run it, and tell how it ended."""
    job = json.loads(sys.stdin.buffer.read())
    token = job.pop("token")
    try:
        forbid()
    except (OSError, KeyError) as error:
        os.write(2, f"no system-call filter: {error}\n".encode())
        os._exit(97)
    write, leave, dumps = os.write, os._exit, json.dumps
    write(TOLD, b" ")  # from here on an exit status says nothing about the room
    try:
        run(job)
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"[:200].encode("ascii", "backslashreplace")
        write(TOLD, dumps({"error": said.decode()}).encode())
        leave(1)
    write(TOLD, dumps({"token": token}).encode())
    leave(0)


if __name__ == "__main__":
    main()
