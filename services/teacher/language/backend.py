"""What serves a language model: transformers in this process, or an OpenAI-compatible server."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from stillhouse.common.v1 import items_pb2
from stillhouse.teacher.v1 import teacher_pb2

from services.common.fairness import Flow
from services.common.names import parse


def flow_of(request: teacher_pb2.ScoreRequest | teacher_pb2.GenerateRequest) -> Flow:
    """Return whose turn a call takes. Raises InvalidInput."""
    project, _ = parse(request.model, "models", field="model")
    return Flow(project, request.execution == items_pb2.EXECUTION_SHARD)


class LanguageBackend(Protocol):
    """The methods of TeacherService for one language model. Requests have been checked for what
    does not depend on the model."""

    async def describe(self, project: str) -> teacher_pb2.Model:
        """The model's details."""
        ...

    async def score(
        self, request: teacher_pb2.ScoreRequest, time_left_s: float | None
    ) -> teacher_pb2.ScoreResponse:
        """Log-probabilities of given answers."""
        ...

    async def sample_targets(
        self, project: str, request: teacher_pb2.SampleTargetsRequest
    ) -> teacher_pb2.SampleTargetsResponse:
        """Sparse targets of packed sequences."""
        ...

    def generate(
        self, request: teacher_pb2.GenerateRequest
    ) -> AsyncGenerator[teacher_pb2.GenerateResponse, None]:
        """Answers to prompts, event by event."""
        ...
