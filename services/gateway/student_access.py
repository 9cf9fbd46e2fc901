"""What all RPCs of StudentsService stand on: finding students, their versions and their files."""

from __future__ import annotations

import asyncio
import functools

from services.common import names
from services.common.blobs import BlobStore
from services.common.catalogue import Catalogue
from services.gateway import student_messages as shown
from services.gateway import students
from services.gateway.cache import EmbeddingCache
from services.gateway.gathering import Crowd, Gathered
from services.gateway.peers import Peers
from services.gateway.store import Store, StudentRow, VersionRow
from services.gateway.student_calls import Serving, StudentCalls, serving
from services.gateway.student_files import StudentFile, StudentFiles


class StudentAccess:
    """The tables, the blob store and the peers, and look-ups in them on threads."""

    def __init__(
        self,
        store: Store,
        blobs: BlobStore,
        peers: Peers,
        catalogue: Catalogue,
        cache: EmbeddingCache | None = None,
        *,
        max_batch_items: int = 256,
        crowd: Crowd | None = None,
    ) -> None:
        self._store = store
        self._students = Gathered(functools.partial(students.get_many, store), crowd)
        self._blobs = blobs
        self._peers = peers
        self._catalogue = catalogue
        self._files = StudentFiles(blobs)
        self._calls = StudentCalls(peers, blobs, catalogue, cache or EmbeddingCache(""))
        self._max_batch_items = max_batch_items

    async def _student(self, name: str, field: str) -> StudentRow:
        project, student_id = names.parse(name, "students", field=field)
        found = await self._students.get((project, student_id))
        if found is None:
            raise students.missing(project, student_id)
        return found

    async def _version(
        self, name: str, version: str, default: str
    ) -> tuple[StudentRow, VersionRow]:
        project, student_id = names.parse(name, "students", field="student")
        return await asyncio.to_thread(self._read_version, project, student_id, version, default)

    async def _named_version(self, name: str) -> tuple[StudentRow, VersionRow]:
        project, student_id, version = names.parse(name, "students", "versions")
        return await asyncio.to_thread(self._read_version, project, student_id, version, "")

    async def _serving(
        self, name: str, version: str, default: str
    ) -> tuple[StudentRow, VersionRow, Serving]:
        student, row = await self._version(name, version, default)
        file = await self._file(student, row)
        return student, row, serving(student, shown.ref_of(row), file)

    async def _file(self, student: StudentRow, row: VersionRow) -> StudentFile:
        return await asyncio.to_thread(
            self._files.load, student.project, row.weights_digest, row.card_digest
        )

    def _read_version(
        self, project: str, student_id: str, version: str, default: str
    ) -> tuple[StudentRow, VersionRow]:
        with self._store.read() as session:
            student = students.find(session, project, student_id)
            return student, students.resolve(session, student, version, default)
