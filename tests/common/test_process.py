"""What a process sets up: freed memory stays for the next forward pass."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

_FAULTS = """
import resource, sys
if sys.argv[1] == "keep":
    from services.common.process import keep_memory
    keep_memory()
import threading
def passes():
    for _ in range(20):
        kept = [b"x" * (8 << 20) for _ in range(3)]
def run():
    worker = threading.Thread(target=passes)
    worker.start()
    worker.join()
run()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
run()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str, **environment: str) -> int:
    """Pages that a process asks the kernel for in twenty passes over 24 MiB."""
    known = {name: one for name, one in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", _FAULTS, how],
        env={**known, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_a_second_pass_finds_the_memory_of_the_first() -> None:
    pages = 24 << 20 >> 12
    assert faults("keep") < pages, f"{faults('plain')} without it"
