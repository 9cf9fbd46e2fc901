"""Options of Generate and SampleTargets, checked, with their defaults."""

from __future__ import annotations

import math

from stillhouse.common.v1 import language_pb2
from stillhouse.teacher.v1 import teacher_pb2

from services.common.errors import InvalidInput
from services.teacher.language.generation import SamplingOptions
from services.teacher.language.targets import TargetOptions

DEFAULT_MAX_TOKENS = 128
DEFAULT_BYTES = 40.0
MAX_STOPS = 8
MAX_STOP_CHARS = 256
MAX_TOP_K = 4096
MIN_TEMPERATURE = 1e-4
"""Least one but 0: logits over it stay finite in float32."""


def sampling_options(message: language_pb2.Sampling) -> SamplingOptions:
    """Return how to sample. Raises InvalidInput."""
    _within("sampling.temperature", message.temperature, 0.0, 100.0)
    _within("sampling.top_p", message.top_p, 0.0, 1.0)
    if message.max_tokens < 0:
        raise InvalidInput("sampling.max_tokens: must not be negative", field="sampling.max_tokens")
    stops = tuple(message.stop)
    if len(stops) > MAX_STOPS or not all(0 < len(stop) <= MAX_STOP_CHARS for stop in stops):
        raise InvalidInput(
            f"sampling.stop: at most {MAX_STOPS} texts of 1 to {MAX_STOP_CHARS} characters",
            field="sampling.stop",
        )
    return SamplingOptions(
        temperature=message.temperature and max(message.temperature, MIN_TEMPERATURE),
        top_p=message.top_p or 1.0,
        max_tokens=message.max_tokens or DEFAULT_MAX_TOKENS,
        stops=stops,
        seed=message.seed,
    )


def target_options(request: teacher_pb2.SampleTargetsRequest) -> TargetOptions:
    """Return what to keep. Raises InvalidInput."""
    _within("temperature", request.temperature or 1.0, MIN_TEMPERATURE, 100.0)
    _within("bytes_per_token", request.bytes_per_token, 0.0, 1e5)
    top_k = request.kind == teacher_pb2.TARGET_KIND_TOP_K
    if not 0 <= request.top_k <= MAX_TOP_K or (request.top_k and not top_k):
        raise InvalidInput(
            f"top_k: 0 to {MAX_TOP_K}, and only with TARGET_KIND_TOP_K", field="top_k"
        )
    return TargetOptions(
        kind="top_k" if top_k else "sampled",
        bytes_per_token=request.bytes_per_token or DEFAULT_BYTES,
        top_k=request.top_k,
        temperature=request.temperature or 1.0,
        seed=request.seed,
    )


def _within(field: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise InvalidInput(f"{field}: {value} is not within {low} and {high}", field=field)
