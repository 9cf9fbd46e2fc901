"""Runs a trained classifier: logits of many images, and how long one takes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from services.common.predictions import Predictions
from services.student.classifier.course import HeldOut, Network
from services.student.classifier.data import ClassifierData, ImageSource, Pixels, normalised
from services.student.classifier.prefetch import Prefetch
from services.student.data import Doubles, Ints
from services.student.timing import median_ms
from services.torch_common.preprocess import Preprocessing

BATCH = 64
HELDOUT_IMAGES = 512
"""Images measured during training, and kept decoded; all of `val` is measured at the end."""


@torch.inference_mode()
def logits_of(
    module: nn.Module,
    source: ImageSource,
    rows: Ints,
    preprocessing: Preprocessing,
    device: torch.device,
    *,
    told: Callable[[int, int], None] = lambda done, total: None,
) -> Doubles:
    """Logits [n, K] float64 of images as they are, computed in float32; `module` is in eval mode.

    Raises InvalidInput for an image that cannot be decoded, NotFound for one that is not there.
    """
    parts = [rows[at : at + BATCH] for at in range(0, len(rows), BATCH)]
    found = []
    with Prefetch(lambda at: source.plain(parts[at], preprocessing), len(parts)) as batches:
        for at in range(len(parts)):
            told(at * BATCH, len(rows))
            images = normalised(batches.take(at), preprocessing, device)
            found.append(module(images).float().cpu().numpy())
    return np.concatenate(found).astype(np.float64)


def predictions(data: ClassifierData, rows: Ints, logits: Doubles) -> Predictions:
    """Logits [n, K] of the items `rows` beside their labels."""
    return Predictions(logits, data.labels.hot[rows], data.labels.multi_label)


def held_out(
    data: ClassifierData, source: ImageSource, preprocessing: Preprocessing, device: torch.device
) -> Callable[[Network], HeldOut] | None:
    """What measures a student on `val` during training; None where there is nothing in it."""
    if not len(data.val):
        return None
    # Spread over the split, which may be sorted by class.
    rows = data.val[np.unique(np.linspace(0, len(data.val) - 1, HELDOUT_IMAGES).astype(int))]
    kept: list[Pixels] = []

    @torch.no_grad()  # in inference mode, shards could not be gathered for training afterwards
    def measure(student: Network) -> HeldOut:
        if not kept:
            parts = (rows[at : at + BATCH] for at in range(0, len(rows), BATCH))
            kept.extend(source.plain(part, preprocessing) for part in parts)
        logits = [student(normalised(part, preprocessing, device)).float().cpu() for part in kept]
        found = predictions(data, rows, torch.cat(logits).numpy().astype(np.float64))
        return HeldOut(float(found.correct.mean()), float(found.negative_log_likelihood.mean()))

    return measure


@torch.inference_mode()
def latency_ms(module: nn.Module, size_px: int, device: torch.device) -> float:
    """Median milliseconds of one image alone, preprocessing excluded; `module` is in eval mode."""
    image = torch.zeros(1, 3, size_px, size_px, device=device)
    return median_ms(lambda: module(image).cpu())  # which waits for the device
