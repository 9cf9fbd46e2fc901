"""The README's first command, small: everything from nothing to a report on 60 photos a task."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import free_port

pytestmark = pytest.mark.e2e
METRICS = ("fidelity", "accuracy", "nec")
CONTENDERS = ("student", "random_control", "random_words", "sparse_probe")


def test_the_demo_writes_its_report(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stillhouse_client", "demo", "--images", "60"]
    done = subprocess.run(
        [*command, "--data-dir", str(tmp_path / "data"), "--port", str(free_port())],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    folder = tmp_path / "data" / "demo"
    report = json.loads((folder / "report.json").read_text())
    for task in (report["tasks"]["coarse"], report["tasks"]["fine"]):
        assert task["n_train"] > 0
        assert task["n_test"] > 0
        for part in (task, task["at_nec_10"]):
            estimates = [part[kind][metric] for kind in CONTENDERS for metric in METRICS]
            for estimate in [*estimates, part["paired_random"], task["teacher_accuracy"]]:
                assert estimate["low"] <= estimate["value"] <= estimate["high"]
    assert {"cache_hits", "wall_s", "stage_s"} <= set(report)
    page = (folder / "report.html").read_text()
    assert not re.search(r"""(src|href)=["']https?://""", page)
    assert (folder / "report.png").stat().st_size > 10_000
