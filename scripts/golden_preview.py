"""Write tests/golden/preview.json: what an edit's preview must show, for each copy of that maths.

The student service decides what a student says; the workbench computes it again in the browser
while somebody drags a weight. Both are tested against these numbers. Run it only where the meaning
of a figure changes on purpose.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from services.student.artefacts import Loss, probabilities
from services.student.data import Doubles, Mask
from services.student.evaluation import Truth, decisions, score

ITEMS, CONCEPTS, CLASSES = 40, 12, 4
SMALLEST_MARGIN = 1e-3
"""No decision is nearer to its threshold than this, so that float32 decides the same."""
OUT = Path(__file__).resolve().parent.parent / "tests" / "golden" / "preview.json"
Case = dict[str, Any]


def make_case(loss: Loss, seed: int) -> Case:
    """Inputs of a case; a class that nothing is decided for is among those of softmax."""
    rng = np.random.default_rng(seed)
    presence = np.maximum(rng.normal(0.15, 0.2, (ITEMS, CONCEPTS)), 0).round(4)
    weight = rng.normal(0, 1.2, (CLASSES, CONCEPTS)) * (rng.random((CLASSES, CONCEPTS)) < 0.4)
    bias = rng.normal(0, 0.3, CLASSES)
    bias[-1] -= 20.0 if loss == "softmax" else 0.0
    mean, std = presence.mean(axis=0).round(4), presence.std(axis=0).round(4)
    clean = (presence - mean) / std @ weight.T + bias
    noisy = clean + rng.normal(0, 1.5, clean.shape)
    responses = probabilities(noisy, loss).round(4)
    labels = decisions(noisy + rng.normal(0, 1.0, clean.shape), loss)
    return {
        "loss": loss,
        "presence": presence.tolist(),
        "mean": mean.tolist(),
        "std": std.tolist(),
        "weight": weight.round(4).tolist(),
        "bias": bias.round(4).tolist(),
        "responses": responses.tolist(),
        "labels": labels.astype(int).tolist(),
        "change": {"label": 1, "concept": 5, "weight": 2.5},
    }


def figures(case: Case, weight: Doubles) -> Case:
    """Return what a student of these weights [K, M] says about the case's items."""
    loss: Loss = case["loss"]
    presence, mean, std = (np.array(case[name]) for name in ("presence", "mean", "std"))
    logits = (presence - mean) / std @ weight.T + np.array(case["bias"])
    labels = np.array(case["labels"], bool)
    responses = np.array(case["responses"])
    scored = score(Truth(responses, responses, labels, loss), logits, 0.0)
    made = decisions(logits, loss)
    assert scored.accuracy is not None
    return {
        "logits": logits.tolist(),
        "decisions": made.astype(int).tolist(),
        "fidelity": float(scored.fidelity.mean()),
        "accuracy": float(scored.accuracy.mean()),
        "recall": [_share(made[:, k], labels[:, k]) for k in range(CLASSES)],
        "precision": [_share(labels[:, k], made[:, k]) for k in range(CLASSES)],
    }


def changed(case: Case) -> Doubles:
    """Return the case's weights [K, M] with its one change made."""
    weight = np.array(case["weight"], np.float64)
    weight[case["change"]["label"], case["change"]["concept"]] = case["change"]["weight"]
    return weight


def complete(case: Case) -> Case:
    """Return the case with what is expected before and after its change."""
    before, after = figures(case, np.array(case["weight"])), figures(case, changed(case))
    rows = np.not_equal(before["decisions"], after["decisions"]).any(axis=1)
    flipped = np.flatnonzero(rows).tolist()
    return {**case, "before": before, "after": after, "flipped": flipped}


def margin(case: Case) -> float:
    """Return how near the nearest decision, of the student or the teacher, is to its threshold."""
    found = []
    for values, floor in (
        (np.array(case["before"]["logits"]), 0.0),
        (np.array(case["after"]["logits"]), 0.0),
        (np.array(case["responses"]), 0.5),
    ):
        top = np.sort(values, axis=1)
        edge = np.abs(values - floor) if case["loss"] == "bce" else top[:, -1] - top[:, -2]
        found.append(edge.min())
    return float(min(found))


def make() -> dict[str, Case]:
    """Return a case of each loss, of the first seed that leaves a margin and flips something."""
    return {"softmax": _first("softmax"), "bce": _first("bce")}


def _first(loss: Loss) -> Case:
    cases = (complete(make_case(loss, seed)) for seed in range(1000))
    return next(case for case in cases if _useful(case))


def _useful(case: Case) -> bool:
    return margin(case) > SMALLEST_MARGIN and bool(case["flipped"])


def _share(hits: Mask, among: Mask) -> float | None:
    """Share of `hits` among `among`; None where there is none."""
    return float((hits & among).sum() / among.sum()) if among.any() else None


if __name__ == "__main__":
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(make(), indent=None, separators=(",", ":")) + "\n")
