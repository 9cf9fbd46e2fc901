"""Models, encoders and concept sets of a project: list, look at, try, download."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path

from stillhouse.common.v1 import items_pb2, language_pb2
from stillhouse.concepts.v1 import concepts_pb2
from stillhouse.gateway.v1 import models_pb2 as pb
from stillhouse.gateway.v1 import models_pb2_grpc
from stillhouse.teacher.v1 import teacher_pb2

from stillhouse_client import images, model_files, names
from stillhouse_client.blobs import AsyncBlobs
from stillhouse_client.pages import PAGE_SIZE, collect
from stillhouse_client.transport import Transport, new_request_id

_COMPUTE_S = 120.0
_LOAD_S = 600.0
"""A model that is asked for may have to be fetched, converted and loaded first."""


class AsyncModels:
    """What a client can ask about models."""

    def __init__(self, transport: Transport, project: str) -> None:
        self._blobs = AsyncBlobs(transport, project)
        self._transport = transport
        self._project = project
        self._stub = models_pb2_grpc.ModelServiceStub(transport.channel)

    async def teachers(self) -> Sequence[teacher_pb2.Model]:
        """Return the teachers, by name."""

        async def fetch(token: str) -> tuple[list[teacher_pb2.Model], str]:
            request = pb.ListTeachersRequest(
                project=self._project, page_size=PAGE_SIZE, page_token=token
            )
            page = await self._transport.call(self._stub.ListTeachers, request)
            return [*page.models], page.next_page_token

        return await collect(fetch)

    async def get(self, name: str) -> pb.GetTeacherResponse:
        """Return a model, loaded, with the files of one that a job made. Raises NotFound."""
        request = pb.GetTeacherRequest(name=self.full(name))
        return await self._transport.call(self._stub.GetTeacher, request, timeout_s=_LOAD_S)

    async def generate(
        self,
        name: str,
        prompt: str | Sequence[language_pb2.ChatMessage],
        *,
        sampling: language_pb2.Sampling | None = None,
    ) -> AsyncIterator[pb.GenerateTextResponse]:
        """Yield a language model's answer as it comes; the last event has all of it.

        A text is continued as it is; a conversation goes through the model's chat template. Raises
        Mismatch for a model without a template, or of another kind.
        """
        asked = language_pb2.Prompt()
        if isinstance(prompt, str):
            asked.text = prompt
        else:
            asked.chat.messages.extend(prompt)
        request = pb.GenerateTextRequest(model=self.full(name), prompt=asked, sampling=sampling)
        async for event in self._transport.stream(
            self._stub.GenerateText, request, timeout_s=_LOAD_S
        ):
            yield event

    async def download(
        self, name: str, folder: Path, *, progress: model_files.Progress | None = None
    ) -> pb.ProjectModelFiles:
        """Write the files of a language model that a job made into `folder`, and return them.

        The folder is a plain transformers checkpoint or peft adapter. Files that are there with
        the right digest are kept, so a download that broke off goes on. Raises Mismatch for a model
        without files of its own.
        """
        files = (await self.get(name)).files
        await model_files.fetch(self._blobs, files, folder, progress=progress)
        return files

    def full(self, name: str) -> str:
        """Return the full name of `name`."""
        return names.full("models", name, project=self._project)

    async def encoders(self) -> Sequence[concepts_pb2.Encoder]:
        """Return the encoders, by name."""
        request = pb.ListProjectEncodersRequest(project=self._project)
        return (await self._transport.call(self._stub.ListProjectEncoders, request)).encoders

    async def embed_images(
        self, encoder: str, items: Iterable[items_pb2.ImageInput]
    ) -> Sequence[concepts_pb2.EmbedImageResult]:
        """Return one result per image, in order: float16 [D] of unit length, or why there is none.

        Any number of images is sent in batches within the server's limits. Those that come by
        digest and were embedded before cost next to nothing.
        """
        limits = (await self._transport.info()).limits
        found: list[concepts_pb2.EmbedImageResult] = []
        for batch in images.batches(iter(items), limits):
            if why := images.refusal(batch, limits):
                found.append(concepts_pb2.EmbedImageResult(item_id=batch[0].item_id, error=why))
                continue
            request = pb.EmbedProjectImagesRequest(
                encoder=names.full("encoders", encoder, project=self._project), items=batch
            )
            method = self._stub.EmbedProjectImages
            found += (await self._transport.call(method, request, timeout_s=_COMPUTE_S)).results
        return found

    async def concept_sets(self) -> Sequence[concepts_pb2.ConceptSet]:
        """Return the concept sets, without their words."""
        request = pb.ListProjectConceptSetsRequest(project=self._project)
        response = await self._transport.call(self._stub.ListProjectConceptSets, request)
        return response.concept_sets

    async def create_concept_set(
        self, concept_set_id: str, words: Sequence[str], *, request_id: str = ""
    ) -> concepts_pb2.ConceptSet:
        """Store a concept set of your own words."""
        request = pb.CreateProjectConceptSetRequest(
            project=self._project,
            concept_set_id=concept_set_id,
            words=words,
            request_id=request_id or new_request_id(),
        )
        response = await self._transport.call(self._stub.CreateProjectConceptSet, request)
        return response.concept_set
