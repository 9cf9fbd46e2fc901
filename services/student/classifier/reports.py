"""The JSON report of a classifier run: how good, how like its teacher, how large, how fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from services.student.artefacts import Card
from services.student.classifier.course import Progress
from services.student.classifier.data import ClassifierData
from services.student.classifier.figures import figures
from services.student.classifier.inference import latency_ms, predictions
from services.student.classifier.networks import StudentNetwork
from services.student.data import Doubles


@dataclass(frozen=True)
class Stored:
    """Sizes of what was stored."""

    weights_bytes: int
    onnx_bytes: int = 0
    onnx_ms: float | None = None
    """Median of one image alone by onnxruntime on the CPU; None where it was not run."""
    no_onnx: str = ""
    """Why there is no ONNX file."""


def make_report(
    data: ClassifierData,
    student: StudentNetwork,
    logits: dict[str, Doubles],
    progress: Progress,
    stored: Stored,
    device: torch.device,
) -> Card:
    """The report; `logits` are the student's by split. A split without items says so."""
    report: Card = {
        "kind": "classifier",
        "student": {split: _student(data, split, logits) for split in ("val", "test")},
        "teacher": {split: _teacher(data, split) for split in ("val", "test")},
        "size": {
            "parameters": student.parameters,
            "weights_bytes": stored.weights_bytes,
            "onnx_bytes": stored.onnx_bytes or None,
        },
        "latency": {
            "median_ms": latency_ms(student.module, student.input.size_px, device),
            "onnx_median_ms": stored.onnx_ms,
            "batch": 1,
            "threads": torch.get_num_threads(),
            "device": str(device),
        },
        "architecture": student.architecture,
        "input_px": student.input.size_px,
        "classes": list(data.labels.classes),
        "items": {"left_out": data.left_out}
        | {split: len(getattr(data, split)) for split in ("train", "val", "test")},
        "curves": [{"run": "", **point} for point in progress.curves],
        "steps": progress.step,
        "best_step": progress.best_step,
        "stopped_early": progress.stopped_early,
        "images": progress.images,
        "seconds": progress.seconds,
    }
    if stored.no_onnx:
        report["no_onnx"] = stored.no_onnx
    return report


def _student(data: ClassifierData, split: str, logits: dict[str, Doubles]) -> dict[str, Any]:
    if split not in logits:
        return {"reason": f"there are no items in {split}"}
    rows = getattr(data, split)
    teacher = None if data.teacher is None else data.teacher[rows].astype("float64")
    return dict(figures(predictions(data, rows, logits[split]), teacher))


def _teacher(data: ClassifierData, split: str) -> dict[str, Any]:
    rows = getattr(data, split)
    if data.teacher is None or not len(rows):
        return {"reason": "the teacher's logits were not given" if len(rows) else "no items"}
    return dict(figures(predictions(data, rows, data.teacher[rows].astype("float64"))))
