"""ListConceptExamples: where concepts are strongest in a student's data."""

from __future__ import annotations

import asyncio

from stillhouse.gateway.v1 import students_pb2 as pb

from services.common.errors import InvalidInput
from services.common.interceptors import Context
from services.gateway.concept_examples import strongest
from services.gateway.region_boxes import input_of
from services.gateway.student_access import StudentAccess

MAX_EXAMPLE_CONCEPTS = 256
MAX_EXAMPLES = 100


class ExampleRpcs(StudentAccess):
    """ListConceptExamples."""

    async def ListConceptExamples(
        self, request: pb.ListConceptExamplesRequest, context: Context
    ) -> pb.ListConceptExamplesResponse:
        if not 1 <= len(request.concepts) <= MAX_EXAMPLE_CONCEPTS:
            raise InvalidInput(
                f"concepts: 1 to {MAX_EXAMPLE_CONCEPTS} are needed", field="concepts"
            )
        if request.page_size < 0:
            raise InvalidInput("page_size: must not be negative", field="page_size")
        student, _, ready = await self._serving(request.student, "", "head")
        examples = await asyncio.to_thread(
            strongest,
            self._blobs,
            student.project,
            ready.file,
            list(dict.fromkeys(request.concepts)),
            label=request.label,
            count=min(request.page_size or 4, MAX_EXAMPLES),
            spec=input_of(self._catalogue, student.encoder.rsplit("/", 1)[-1]),
        )
        return pb.ListConceptExamplesResponse(examples=examples)
