"""A real multi-label set: 2 x 2 mosaics of fruit photos, four labels each, distilled with BCE.

Train mosaics are cut from train photos and test mosaics from test photos. A multi-label teacher
head is trained on
the train mosaics; then a student over regions and a student over the whole image alone are
distilled from it, and
their average precision per class on the test mosaics is printed side by side.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table
from stillhouse.gateway.v1 import jobs_pb2

from services.common.catalogue import load_catalogue
from services.common.fetch import ensure_all
from services.common.process import keep_memory, share_cores
from services.gateway.builtin_data import Photo, iter_fruit
from tests.e2e.suite import PROJECT, Suite, suite

TILE_PX = 174
TEST_SHARE = 0.3


def photos_by_class(split: str) -> dict[str, list[Photo]]:
    """Return the fruit photos of a split (`train` means train and val) by fine class."""
    cache = Path.home() / ".cache" / "stillhouse"
    path = ensure_all(load_catalogue(), ["fruit"], cache)["fruit"]
    found: dict[str, list[Photo]] = {}
    for photo in iter_fruit(path):
        if (photo.split == "test") == (split == "test"):
            found.setdefault(photo.labels["fine"], []).append(photo)
    return found


def mosaic(photos: list[Photo]) -> bytes:
    """Return a JPEG of four photos in a square."""
    canvas = Image.new("RGB", (2 * TILE_PX, 2 * TILE_PX))
    for at, photo in enumerate(photos):
        tile = Image.open(io.BytesIO(photo.data)).convert("RGB").resize((TILE_PX, TILE_PX))
        canvas.paste(tile, (TILE_PX * (at % 2), TILE_PX * (at // 2)))
    buffer = io.BytesIO()
    canvas.save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def write_mosaics(folder: Path, count: int, seed: int = 0) -> None:
    """Write `count` mosaics of four different classes with a label table."""
    rng = np.random.default_rng(seed)
    rows = []
    for split, part in (
        ("train", round(count * (1 - TEST_SHARE))),
        ("test", round(count * TEST_SHARE)),
    ):
        pool = photos_by_class(split)
        for number in range(part):
            names = [str(name) for name in rng.permutation(sorted(pool))[:4]]
            chosen = [pool[name][rng.integers(len(pool[name]))] for name in names]
            file = f"{split}-{number:04d}.jpg"
            (folder / file).write_bytes(mosaic(chosen))
            rows.append({"file": file, "label": names, "split": split})
    (folder / "labels.jsonl").write_text("\n".join(json.dumps(row) for row in rows))


def student(running: Suite, *, whole: bool) -> dict[str, Any]:
    """Return the report of one concept job."""
    spec = jobs_pb2.ConceptJobSpec(
        dataset=f"{PROJECT}/datasets/mosaics",
        teacher=f"{PROJECT}/models/mosaics-teacher",
        student_id="whole" if whole else "regions",
        whole_image_only=whole,
        control_draws=-1,
    )
    job = running.finish(running.create(jobs_pb2.DistillationJob(concept=spec)), timeout_s=900)
    return running.read_json(job.report.digest)


def run(count: int) -> dict[str, dict[str, Any]]:
    """Return the reports of both students."""
    with tempfile.TemporaryDirectory() as name, suite(Path(name)) as running:
        folder = Path(name) / "photos"
        folder.mkdir()
        write_mosaics(folder, count)
        dataset = running.add_dataset("mosaics", folder.as_uri())
        assert dataset.multi_label
        head = jobs_pb2.TeacherHeadJobSpec(
            dataset=f"{PROJECT}/datasets/mosaics",
            backbone=f"{PROJECT}/models/efficientnet-lite0",
            model_id="mosaics-teacher",
        )
        running.finish(running.create(jobs_pb2.DistillationJob(teacher_head=head)), timeout_s=900)
        return {"regions": student(running, whole=False), "whole": student(running, whole=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mosaics", type=int, default=500)
    arguments = parser.parse_args()
    share_cores()
    keep_memory()
    reports = run(arguments.mosaics)
    table = Table(title=f"average precision on test mosaics, {arguments.mosaics} mosaics")
    for column in ("class", "regions", "whole image", "teacher"):
        table.add_column(column, justify="left" if column == "class" else "right")
    result: dict[str, Any] = {"mosaics": arguments.mosaics, "classes": {}}
    kinds = ("regions", "whole", "teacher")
    for label, ours in reports["regions"]["per_class"].items():
        whole = reports["whole"]["per_class"][label]
        estimates = [part["ap"] for part in (ours, whole, ours["teacher"])]
        table.add_row(label, *(shown(one) for one in estimates))
        result["classes"][label] = dict(zip(kinds, estimates, strict=True))
    mean = {kind: report["mean_average_precision"] for kind, report in reports.items()}
    result["mean"] = {
        "regions": mean["regions"]["student"],
        "whole": mean["whole"]["student"],
        "teacher": mean["regions"]["teacher"],
    }
    table.add_row("mean", *(shown(one) for one in result["mean"].values()), style="bold")
    Console(width=100).print(table)
    print(json.dumps(result))


def shown(estimate: dict[str, float] | float) -> str:
    """Return an estimate, or a mean without interval, for people."""
    if isinstance(estimate, float):
        return f"{estimate:.3f}"
    if estimate.get("value") is None:
        return "undefined"
    return f"{estimate['value']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"


if __name__ == "__main__":
    main()
