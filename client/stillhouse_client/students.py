"""Students: list them, what to do with their versions, predict, explain, export."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence

from stillhouse.common.v1 import items_pb2
from stillhouse.gateway.v1 import students_pb2 as pb
from stillhouse.student.v1 import student_pb2

from stillhouse_client import images
from stillhouse_client.pages import PAGE_SIZE, collect
from stillhouse_client.versions import AsyncVersions

_COMPUTE_S = 120.0
_EXPORT_S = 600.0
_EXAMPLE_CONCEPTS = 256


class AsyncStudents(AsyncVersions):
    """What a client can do with students and their versions."""

    async def get(self, name: str) -> pb.Student:
        """Return a student. Raises NotFound."""
        request = pb.GetStudentRequest(name=self.full(name))
        return (await self._transport.call(self._stub.GetStudent, request)).student

    async def list(self) -> Sequence[pb.Student]:
        """Return the project's students, newest first."""

        async def fetch(token: str) -> tuple[Sequence[pb.Student], str]:
            request = pb.ListStudentsRequest(
                project=self._project, page_size=PAGE_SIZE, page_token=token
            )
            page = await self._transport.call(self._stub.ListStudents, request)
            return [*page.students], page.next_page_token

        return await collect(fetch)

    async def predict(
        self, name: str, items: Iterable[items_pb2.ImageInput], *, version: str = ""
    ) -> AsyncIterator[pb.PredictImagesResponse]:
        """Yield predictions, batch by batch within the server's limits."""
        limits = (await self._transport.info()).limits
        for batch in images.batches(iter(items), limits):
            if why := images.refusal(batch, limits):
                failed = student_pb2.PredictResult(item_id=batch[0].item_id, error=why)
                yield pb.PredictImagesResponse(results=[failed])
                continue
            request = pb.PredictImagesRequest(
                student=self.full(name),
                items=batch,
                version=self.full_version(name, version) if version else "",
            )
            yield await self._transport.call(
                self._stub.PredictImages, request, timeout_s=_COMPUTE_S
            )

    async def explain(
        self,
        name: str,
        items: Iterable[items_pb2.ImageInput],
        *,
        version: str = "",
        label: str = "",
        top: int = 0,
    ) -> Sequence[pb.ImageExplanation]:
        """Return, per image, what every concept added to the logit of `label` and where."""
        limits = (await self._transport.info()).limits
        found: list[pb.ImageExplanation] = []
        for batch in images.batches(iter(items), limits):
            if why := images.refusal(batch, limits):
                found.append(pb.ImageExplanation(item_id=batch[0].item_id, error=why))
                continue
            request = pb.ExplainImagesRequest(
                student=self.full(name),
                items=batch,
                version=self.full_version(name, version) if version else "",
                label=label,
                top=top,
            )
            found += (
                await self._transport.call(self._stub.ExplainImages, request, timeout_s=_COMPUTE_S)
            ).results
        return found

    async def examples(
        self, name: str, concepts: Sequence[str], *, label: str = "", per_concept: int = 0
    ) -> Sequence[pb.ConceptExample]:
        """Return the image regions where each concept is strongest."""
        found = await self.concepts(name, concepts, label=label, per_concept=per_concept)
        return [*found.examples]

    async def concepts(
        self, name: str, words: Sequence[str], *, label: str = "", per_concept: int = 0
    ) -> pb.ListConceptExamplesResponse:
        """Return where words are strongest and how present in each class; any word will do.

        `label` limits the examples to images of one class.
        """
        found = pb.ListConceptExamplesResponse()
        for start in range(0, len(words), _EXAMPLE_CONCEPTS):
            request = pb.ListConceptExamplesRequest(
                student=self.full(name),
                concepts=words[start : start + _EXAMPLE_CONCEPTS],
                label=label,
                page_size=per_concept,
            )
            found.MergeFrom(
                await self._transport.call(
                    self._stub.ListConceptExamples, request, timeout_s=_COMPUTE_S
                )
            )
        return found

    async def export(
        self,
        name: str,
        version: str = "promoted",
        *,
        format: student_pb2.ExportFormat.ValueType = student_pb2.EXPORT_FORMAT_SAFETENSORS,
    ) -> Sequence[student_pb2.ExportedFile]:
        """Write a version as files; read them with `blobs`."""
        request = pb.ExportStudentRequest(name=self.full_version(name, version), format=format)
        response = await self._transport.call(
            self._stub.ExportStudent, request, timeout_s=_EXPORT_S
        )
        return response.files
