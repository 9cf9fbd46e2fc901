"""ListConceptExamples: where concepts are strongest in a student's data, foreign words too."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
from stillhouse.concepts.v1 import concepts_pb2
from stillhouse.gateway.v1 import students_pb2 as pb

from services.common.errors import InvalidInput
from services.common.interceptors import Context
from services.common.tensors import Array, expect, from_message
from services.gateway.concept_examples import Words, search
from services.gateway.region_boxes import input_of
from services.gateway.student_access import StudentAccess
from services.gateway.student_calls import Serving, check_encoder

MAX_EXAMPLE_CONCEPTS = 256
MAX_EXAMPLES = 100
MAX_WORD_CHARACTERS = 1000
_EMBED_S = 60.0


class ExampleRpcs(StudentAccess):
    """ListConceptExamples."""

    async def ListConceptExamples(
        self, request: pb.ListConceptExamplesRequest, context: Context
    ) -> pb.ListConceptExamplesResponse:
        _check_words(request.concepts)
        if request.page_size < 0:
            raise InvalidInput("page_size: must not be negative", field="page_size")
        student, _, ready = await self._serving(request.student, "", "head")
        if request.label:
            ready.file.class_index(request.label)
        words = await self._words(ready, list(dict.fromkeys(request.concepts)))
        return await asyncio.to_thread(
            search,
            self._blobs,
            student.project,
            ready.file,
            words,
            label=request.label,
            count=min(request.page_size or 4, MAX_EXAMPLES),
            spec=input_of(self._catalogue, student.encoder.rsplit("/", 1)[-1]),
        )

    async def _words(self, student: Serving, names: Sequence[str]) -> Words:
        """The words' embeddings: the student's own, and of others those of its encoder now."""
        file = student.file
        places = {word: at for at, word in enumerate(file.concepts)}
        known = [name in places for name in names]
        text = np.zeros((len(names), file.text.shape[1]), np.float16)
        text[known] = file.text[[places[name] for name in names if name in places]]
        foreign = [name for name in names if name not in places]
        if foreign:
            text[np.logical_not(known)] = await self._embedded(student, foreign)
        return Words(names, text, known)

    async def _embedded(self, student: Serving, words: Sequence[str]) -> Array:
        request = concepts_pb2.EmbedTextsRequest(encoder=student.encoder, texts=words)
        reply = await self._peers.ask(self._peers.concepts.EmbedTexts, request, timeout_s=_EMBED_S)
        check_encoder(student.file, {"encoder_digest": reply.encoder_digest})
        rows = from_message(reply.embeddings, field="embeddings")
        return expect(rows, shape=(len(words), student.file.text.shape[1]), field="embeddings")


def _check_words(words: Sequence[str]) -> None:
    """Raise InvalidInput for too few or too many words, or one that no encoder would take."""
    if not 1 <= len(words) <= MAX_EXAMPLE_CONCEPTS:
        raise InvalidInput(f"concepts: 1 to {MAX_EXAMPLE_CONCEPTS} are needed", field="concepts")
    for at, word in enumerate(words):
        if not word.strip() or len(word) > MAX_WORD_CHARACTERS:
            where = f"concepts[{at}]"
            raise InvalidInput(
                f"{where}: 1 to {MAX_WORD_CHARACTERS:,} characters, not all blank", field=where
            )
