"""Versions of students: list, tune, undo, redo, move between, name, promote, compare."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from stillhouse.gateway.v1 import students_pb2 as pb
from stillhouse.gateway.v1 import students_pb2_grpc
from stillhouse.student.v1 import student_pb2

from stillhouse_client import names
from stillhouse_client.errors import Mismatch
from stillhouse_client.pages import PAGE_SIZE, collect
from stillhouse_client.transport import Transport, new_request_id

_COMPUTE_S = 120.0


class AsyncVersions:
    """What a client can do with the versions of students."""

    def __init__(self, transport: Transport, project: str) -> None:
        self._transport = transport
        self._project = project
        self._stub = students_pb2_grpc.StudentsServiceStub(transport.channel)

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
        expected_head: str = "",
        request_id: str = "",
    ) -> pb.TuneStudentResponse:
        """Apply edits together and make the result the head.

        `expected_head` is the head that the edits were made for; Mismatch where it is another now.
        """
        request = pb.TuneStudentRequest(
            student=self.full(name),
            edits=edits,
            base_version=self.full_version(name, base_version) if base_version else "",
            expected_head=self.full_version(name, expected_head) if expected_head else "",
            request_id=request_id or new_request_id(),
        )
        return await self._transport.call(self._stub.TuneStudent, request, timeout_s=_COMPUTE_S)

    async def undo(self, name: str, *, request_id: str = "") -> pb.StudentVersion:
        """Make the parent of the head the head again."""
        request = pb.UndoTuningRequest(
            student=self.full(name), request_id=request_id or new_request_id()
        )
        return (await self._transport.call(self._stub.UndoTuning, request)).version

    async def redo(self, name: str) -> pb.StudentVersion:
        """Make the newest version that comes from the head the head: what undo left.

        Raises Mismatch where none comes from it.
        """
        head = (await self.version(name)).name
        children = [one.name for one in await self.versions(name) if one.parent == head]
        if not children:
            raise Mismatch(
                f"nothing was tuned from version {names.last(head)}: there is nothing to redo",
                hint="`stillhouse students log` shows all versions",
            )
        return await self.set_head(name, children[-1])

    async def set_head(self, name: str, version: str, *, request_id: str = "") -> pb.StudentVersion:
        """Make any version the head."""
        request = pb.SetStudentHeadRequest(
            student=self.full(name),
            version=self.full_version(name, version),
            request_id=request_id or new_request_id(),
        )
        return (await self._transport.call(self._stub.SetStudentHead, request)).version

    async def rename(
        self, name: str, version: str, display_name: str, *, request_id: str = ""
    ) -> pb.StudentVersion:
        """Give a version a name for people; an empty one takes it away."""
        request = pb.RenameStudentVersionRequest(
            name=self.full_version(name, version),
            display_name=display_name,
            request_id=request_id or new_request_id(),
        )
        return (await self._transport.call(self._stub.RenameStudentVersion, request)).version

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

    async def evaluate(
        self, name: str, version: str = "head", *, split: str = ""
    ) -> pb.EvaluateStudentVersionResponse:
        """Return the metrics of a version on a split; "" is train and val, out of fold."""
        request = pb.EvaluateStudentVersionRequest(
            name=self.full_version(name, version), split=split
        )
        return await self._transport.call(
            self._stub.EvaluateStudentVersion, request, timeout_s=_COMPUTE_S
        )

    async def inspect(self, name: str, version: str = "head") -> pb.InspectStudentVersionResponse:
        """Return what a version's decisions follow from; read its arrays with `blobs`."""
        request = pb.InspectStudentVersionRequest(name=self.full_version(name, version))
        return await self._transport.call(
            self._stub.InspectStudentVersion, request, timeout_s=_COMPUTE_S
        )

    async def promote(self, name: str, version: str = "head") -> pb.Student:
        """Set the version that predictions come from; `previous` rolls back."""
        request = pb.PromoteStudentVersionRequest(
            name=self.full_version(name, version), request_id=new_request_id()
        )
        return (await self._transport.call(self._stub.PromoteStudentVersion, request)).student

    def full(self, name: str) -> str:
        """Return the full name of `name`."""
        return names.full("students", name, project=self._project)

    def full_version(self, name: str, version: str) -> str:
        """Return the full name of a version of `name`."""
        return names.version(name, version, project=self._project)
