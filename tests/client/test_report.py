"""The picture report: whole without a network, and from reports with parts missing."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from stillhouse.gateway.v1 import students_pb2
from stillhouse_client import AsyncClient
from stillhouse_client.report import charts, page, thumbnails

from tests.client.fake_gateway import CLASSES, FRUIT, World
from tests.support import photo


def estimate(value: float) -> dict[str, float]:
    """Return a metric."""
    return {"value": value, "low": value - 0.05, "high": value + 0.05}


def task() -> dict[str, Any]:
    """Return what a job's report says of one task."""
    part = {"fidelity": estimate(0.8), "accuracy": estimate(0.75), "nec": estimate(12.0)}
    kinds = ("student", "random_control", "random_words", "sparse_probe", "dense_probe")
    curve = [{"nec": n, "fidelity": estimate(0.5 + n / 100)} for n in (30, 2, 10)]
    return {
        "n_train": 70,
        "n_test": 20,
        "classes": CLASSES,
        "teacher_accuracy": estimate(0.9),
        **dict.fromkeys(kinds, part),
        "paired_random": estimate(0.04),
        "at_nec_10": {**dict.fromkeys(kinds, part), "paired_random": estimate(0.1)},
        "curves": dict.fromkeys(kinds, curve),
        "confusion": {"classes": CLASSES, "counts": [[9, 1], [3, 7]]},
        "student_version": f"{FRUIT}/versions/1",
    }


def report() -> dict[str, Any]:
    """Return a demo report."""
    metrics = ("fidelity", "recall/Apple", "recall/Pink-Lady")
    changes = [
        {"metric": m, "change": estimate(0.02), "random_change": estimate(0.0)} for m in metrics
    ]
    effect = {"class": "Apple", "concept": "<red>", "before": 0.4, "after": 0.9, "box": [0.8, 1.2]}
    tuning = {
        "class": "Apple",
        "effects": [effect],
        "changes": changes,
        "sentence": 'Apple: "<red>" 0.40 -> 0.90',
        "flipped_items": 3,
        "undo_exact": True,
    }
    tasks = {"coarse": task(), "fine": task()}
    return {"tasks": tasks, "tuning": tuning, "wall_s": 12.0, "cache_hits": 7}


async def test_the_page_is_whole_by_itself(gateway: World, tmp_path: Path) -> None:
    async with AsyncClient(gateway.address) as client:
        files = await page.write(client, report(), tmp_path / "demo")
    html = files[0].read_text()
    assert re.findall(r'(?:src|href)="(?!data:|#)([^"]*)"', html) == []
    assert "@import" not in html
    assert html.count("<img") == 2 * len(CLASSES) * 2
    assert "&lt;red&gt;" in html
    assert "<red>" not in html
    for text in ("0.800 [0.750, 0.850]", "Pink-Lady", "random directions", "red skin"):
        assert text in html
    with Image.open(files[1]) as picture:
        assert picture.width > 1000


def test_an_old_report_without_curves_still_makes_a_picture() -> None:
    bare: dict[str, Any] = {"classes": CLASSES}
    drawn = page.overview({"tasks": {"coarse": bare}, "tuning": None})
    with Image.open(io.BytesIO(drawn)) as picture:
        assert picture.format == "PNG"


def test_the_shown_changes_begin_with_the_overall_and_the_edited_class() -> None:
    shown = [c["metric"] for c in charts.shown_changes(report()["tuning"])]
    assert shown == ["fidelity", "recall/Apple", "recall/Pink-Lady"]


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (estimate(0.5), "0.500 [0.450, 0.550]"),
        ({"value": 3.0, "low": 3.0, "high": 3.0}, "3.000"),
        ({"value": None, "reason": "no test images"}, "-"),
        (None, "-"),
        (2.0, "2.000"),
    ],
)
def test_numbers_read_as_value_and_interval(found: Any, text: str) -> None:
    assert page.number(found) == text


def test_a_thumbnail_keeps_the_region_and_dims_the_rest() -> None:
    red = io.BytesIO()
    Image.new("RGB", (200, 100), (200, 0, 0)).save(red, "PNG")
    box = students_pb2.RegionBox(left=0.5, top=0.0, right=1.0, bottom=1.0)
    made = thumbnails.region(red.getvalue(), box)
    assert made is not None
    with Image.open(io.BytesIO(made)) as opened:
        pixels = np.asarray(opened.convert("RGB"), dtype=float)
    height, width = pixels.shape[:2]
    assert pixels[height // 2, width // 4].min() > 100
    assert pixels[height // 2, 3 * width // 4].min() < 30


@pytest.mark.parametrize("data", [b"", b"no image", photo(1)[:200]])
def test_a_broken_image_is_left_out(data: bytes) -> None:
    assert thumbnails.region(data, students_pb2.RegionBox(right=1, bottom=1)) is None
