"""Reports of language and tuneshift jobs: pages that are whole, and reports with parts missing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from stillhouse_client import job_report
from stillhouse_client.report import job_page

from tests.client import cli
from tests.client.fake_gateway import World
from tests.client.fake_language import language_report, prune_report, tuneshift_report


def test_the_page_of_a_tuneshift_job_is_whole_by_itself(
    capsys: pytest.CaptureFixture[str], gateway: World, tmp_path: Path
) -> None:
    gateway.job_kind = "tuneshift"
    command = ("jobs", "report", "job-1", "--out", str(tmp_path / "out"), "--json")
    result = cli.run(capsys, *command, "--address", gateway.address)
    assert result.json == tuneshift_report()
    html = (tmp_path / "out" / "report.html").read_text()
    assert re.findall(r'(?:src|href)="(?!data:|#)([^"]*)"', html) == []
    assert "&lt;b&gt;odd" in html
    assert "<b>odd" not in html
    for text in (
        "0.600 [0.550, 0.650]",
        "Kept per round",
        "Gained log-probability",
        "1.1: 80",
        "0.120 [0.040, 0.200]",
    ):
        assert text in html
    with Image.open(tmp_path / "out" / "report.png") as picture:
        assert picture.width > 1000


def test_the_page_of_a_prune_job_shows_candidates_and_controls(tmp_path: Path) -> None:
    files = job_page.write(prune_report(), "prune job-1", tmp_path)
    html = files[0].read_text()
    for text in (
        "What each way of training gave",
        "the cut without distillation",
        "&lt;b&gt;odd",
        "-0.600 [-0.650, -0.550]",
        "taken",
        "2.800",
        "70.5 %",
        "3.100 [3.050, 3.150]",
    ):
        assert text in html
    assert "<b>odd" not in html
    titles = [panel.title for panel in job_page.panels(prune_report())]
    assert titles == ["Cross-entropy (nats a token)", "Loss"]


def test_a_language_job_is_shown_before_and_after() -> None:
    titles = [panel.title for panel in job_page.panels(language_report())]
    assert titles == [
        "Cross-entropy (nats a token)",
        "Right choices of stamps",
        "Loss",
        "Held-out cross entropy",
    ]
    first, second = job_report.measures(language_report())
    assert first.change == {"value": -0.3, "low": -0.35, "high": -0.25}
    assert second.metric == "stamps/choice_accuracy"


def test_curves_are_by_run_and_in_order() -> None:
    loss, held_out = [(5, 2.5), (10, 2.0)], [(5, 3.1), (10, 3.1)]
    found = job_report.curves(language_report())
    assert found == {"": {"loss": loss, "heldout_cross_entropy": held_out}}


@pytest.mark.parametrize(
    "report",
    [
        {},
        {"arms": [], "rounds": None, "gap_histogram": {"edges": [0, 1], "in_domain": []}},
        {"arms": [{"arm": "no_filter", "metrics": {"a": {"value": None}}}, "odd"]},
        {"before": {"cross_entropy": float("nan")}, "after": {"cross_entropy": 3}, "curves": [{}]},
        {"kind": "prune", "arms": [], "candidates": [{}, 1], "paired": {"x": 1}, "size": 3},
        {"kind": "prune", "rounds": [{}, {"shape": 1, "before": 2, "steps": "x"}]},
        {"curves": [{"step": 1, "loss": float("inf")}, {"step": True, "loss": 1.0}]},
    ],
)
def test_a_report_with_parts_missing_still_makes_a_page(
    tmp_path: Path, report: dict[str, Any]
) -> None:
    files = job_page.write(report, "language job-1", tmp_path)
    assert "</html>" in files[0].read_text()
