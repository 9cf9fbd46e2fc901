"""Outputs of concept students, alike where images come in and where embeddings do."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from stillhouse.student.v1 import student_pb2

from services.common.errors import StillhouseError, from_status
from services.common.inference.model import TensorSpec
from services.common.inference.requests import InferCall
from services.common.inference.responses import Output
from services.common.tensors import from_message

LOGITS, PROBABILITIES = "logits", "probabilities"
CONCEPTS, CONTRIBUTIONS = "concepts", "contributions"
DEFAULT_TOP, MAX_TOP = 10, 1000
TOP, LABEL = "top", "label"
"""Parameters of a call: how many contributions, and of which class."""


def student_specs(classes: int) -> tuple[TensorSpec, ...]:
    """What a student of that many classes gives."""
    return (
        TensorSpec(LOGITS, "FP32", (-1, classes)),
        TensorSpec(PROBABILITIES, "FP32", (-1, classes)),
        TensorSpec(CONCEPTS, "BYTES", (-1, -1)),
        TensorSpec(CONTRIBUTIONS, "FP32", (-1, -1)),
    )


def top_of(call: InferCall) -> int:
    """Return how many contributions an image gets. Raises InvalidInput."""
    return call.whole_number(TOP, most=MAX_TOP) or DEFAULT_TOP


def asks_contributions(call: InferCall) -> bool:
    """Return whether a call needs explanations."""
    return call.asks(CONCEPTS) or call.asks(CONTRIBUTIONS)


def prediction_outputs(predictions: Sequence[student_pb2.Prediction]) -> list[Output]:
    """Logits and probabilities [N, K] float32."""
    return [
        Output.numbers(LOGITS, np.stack([from_message(one.logits) for one in predictions])),
        Output.numbers(
            PROBABILITIES, np.stack([from_message(one.probabilities) for one in predictions])
        ),
    ]


def contribution_outputs(explanations: Sequence[student_pb2.Explanation], top: int) -> list[Output]:
    """Concepts [N, top] and what each adds to the logit [N, top] float32, largest first.

    Where a class has fewer concepts, empty names and zeros follow.
    """
    words = [[""] * top for _ in explanations]
    parts = np.zeros((len(explanations), top), np.float32)
    for row, one in enumerate(explanations):
        for at, found in enumerate(one.contributions[:top]):
            words[row][at], parts[row, at] = found.concept, found.contribution
    return [Output.texts(CONCEPTS, words), Output.numbers(CONTRIBUTIONS, parts)]


def predictions_of(
    results: Sequence[student_pb2.PredictResult],
    failed: Callable[[int, StillhouseError], StillhouseError],
) -> list[student_pb2.Prediction]:
    """Return the predictions, or raise what `failed` makes of the first item without one."""
    for at, one in enumerate(results):
        if one.WhichOneof("outcome") != "prediction":
            raise failed(at, from_status(one.error))
    return [one.prediction for one in results]


def explanations_of(
    results: Sequence[student_pb2.ExplainResult],
    failed: Callable[[int, StillhouseError], StillhouseError],
) -> list[student_pb2.Explanation]:
    """Return the explanations, or raise what `failed` makes of the first item without one."""
    for at, one in enumerate(results):
        if one.WhichOneof("outcome") != "explanation":
            raise failed(at, from_status(one.error))
    return [one.explanation for one in results]
