"""Students: inspect, tune, undo, compare, promote, predict, explain, export."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence

from stillhouse.common.v1 import items_pb2
from stillhouse.gateway.v1 import students_pb2 as pb
from stillhouse.gateway.v1 import students_pb2_grpc
from stillhouse.student.v1 import student_pb2

from stillhouse_client import images, names
from stillhouse_client.pages import PAGE_SIZE, collect
from stillhouse_client.transport import Transport, new_request_id

_COMPUTE_S = 120.0
_EXPORT_S = 600.0
_EXAMPLE_CONCEPTS = 256


class AsyncStudents:
    """What a client can do with students."""

    def __init__(self, transport: Transport, project: str) -> None:
        self._transport = transport
        self._project = project
        self._stub = students_pb2_grpc.StudentsServiceStub(transport.channel)

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

    async def version(self, name: str, version: str = "head") -> pb.StudentVersion:
        """Return a version with its weights by concept."""
        request = pb.GetStudentVersionRequest(name=self.full_version(name, version))
        return (await self._transport.call(self._stub.GetStudentVersion, request)).version

    async def versions(self, name: str) -> Sequence[pb.StudentVersion]:
        """Return a student's versions, oldest first."""

        async def fetch(token: str) -> tuple[Sequence[pb.StudentVersion], str]:
            request = pb.ListStudentVersionsRequest(
                student=self.full(name), page_size=PAGE_SIZE, page_token=token
            )
            page = await self._transport.call(self._stub.ListStudentVersions, request)
            return [*page.versions], page.next_page_token

        return await collect(fetch)

    async def tune(
        self,
        name: str,
        edits: Iterable[student_pb2.ConceptEdit],
        *,
        base_version: str = "",
        request_id: str = "",
    ) -> pb.TuneStudentResponse:
        """Apply edits together and make the result the head."""
        request = pb.TuneStudentRequest(
            student=self.full(name),
            edits=edits,
            base_version=self.full_version(name, base_version) if base_version else "",
            request_id=request_id or new_request_id(),
        )
        return await self._transport.call(self._stub.TuneStudent, request, timeout_s=_COMPUTE_S)

    async def undo(self, name: str, *, request_id: str = "") -> pb.StudentVersion:
        """Make the parent of the head the head again."""
        request = pb.UndoTuningRequest(
            student=self.full(name), request_id=request_id or new_request_id()
        )
        return (await self._transport.call(self._stub.UndoTuning, request)).version

    async def events(self, name: str) -> Sequence[pb.StudentEvent]:
        """Return what was done to a student, oldest first."""

        async def fetch(token: str) -> tuple[Sequence[pb.StudentEvent], str]:
            request = pb.ListStudentEventsRequest(
                student=self.full(name), page_size=PAGE_SIZE, page_token=token
            )
            page = await self._transport.call(self._stub.ListStudentEvents, request)
            return [*page.events], page.next_page_token

        return await collect(fetch)

    async def compare(
        self, name: str, first: str, second: str, *, split: str = ""
    ) -> pb.CompareStudentVersionsResponse:
        """Return the weights that differ between two versions and the metrics of both."""
        request = pb.CompareStudentVersionsRequest(
            student=self.full(name), first_version=first, second_version=second, split=split
        )
        return await self._transport.call(
            self._stub.CompareStudentVersions, request, timeout_s=_COMPUTE_S
        )

    async def promote(self, name: str, version: str = "head") -> pb.Student:
        """Set the version that predictions come from; `previous` rolls back."""
        request = pb.PromoteStudentVersionRequest(
            name=self.full_version(name, version), request_id=new_request_id()
        )
        return (await self._transport.call(self._stub.PromoteStudentVersion, request)).student

    async def predict(
        self, name: str, items: Iterable[items_pb2.ImageInput], *, version: str = ""
    ) -> AsyncIterator[pb.PredictImagesResponse]:
        """Yield predictions, batch by batch within the server's limits."""
        limits = (await self._transport.info()).limits
        for batch in images.batches(iter(items), limits):
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
        found: list[pb.ConceptExample] = []
        for start in range(0, len(concepts), _EXAMPLE_CONCEPTS):
            request = pb.ListConceptExamplesRequest(
                student=self.full(name),
                concepts=concepts[start : start + _EXAMPLE_CONCEPTS],
                label=label,
                page_size=per_concept,
            )
            found += (
                await self._transport.call(
                    self._stub.ListConceptExamples, request, timeout_s=_COMPUTE_S
                )
            ).examples
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

    def full(self, name: str) -> str:
        """Return the full name of `name`."""
        return names.full("students", name, project=self._project)

    def full_version(self, name: str, version: str) -> str:
        """Return the full name of a version of `name`."""
        return names.version(name, version, project=self._project)
