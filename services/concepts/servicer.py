"""ConceptsService: checks a call, prepares its images, runs them through the encoder's queue."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import numpy as np
from google.rpc import status_pb2
from PIL import Image
from stillhouse.common.v1 import items_pb2, tensor_pb2
from stillhouse.concepts.v1 import concepts_pb2, concepts_pb2_grpc
from torch import Tensor

from services.common.accounting import Tally
from services.common.batching import Batcher, Served
from services.common.blobs import BlobStore
from services.common.errors import InvalidInput
from services.common.fairness import Flow
from services.common.inputs import check_batch
from services.common.interceptors import Context, time_left_s
from services.common.names import check_id, join, parse
from services.common.presence import presence
from services.common.tensors import Array, expect, from_message, to_message
from services.common.timings import encoding, timings_of, together
from services.concepts import replies
from services.concepts.concept_sets import ConceptSets, built_in, check_words
from services.concepts.filters import FilterSettings, filter_words
from services.concepts.intake import Intake, Prepared
from services.concepts.memory_rpcs import MemoryRpcs
from services.concepts.registry import Registry, ServedEncoder
from services.concepts.settings import ConceptsSettings
from services.concepts.texts import check_texts

R = TypeVar("R")
_WORDS_FOR_PERCENTILES = 100


class ConceptsServicer(MemoryRpcs, concepts_pb2_grpc.ConceptsServiceServicer):
    """The RPCs of ConceptsService."""

    def __init__(self, settings: ConceptsSettings, registry: Registry, blobs: BlobStore) -> None:
        self._settings, self._registry, self._blobs = settings, registry, blobs
        self._intake = Intake(settings, blobs)
        self._sets = ConceptSets(blobs)
        self._taus: dict[str, Array] = {}

    async def ListEncoders(
        self, request: concepts_pb2.ListEncodersRequest, context: Context
    ) -> concepts_pb2.ListEncodersResponse:
        project = check_id(request.project, field="project")
        encoders = []
        for entry in self._registry.entries():
            served = self._registry.loaded(entry.id)
            if served is not None:
                encoders.append(replies.encoder(project, served))
            else:
                name = join(project, "encoders", entry.id)
                encoders.append(concepts_pb2.Encoder(name=name, licence=entry.licence))
        return concepts_pb2.ListEncodersResponse(encoders=encoders)

    async def GetEncoder(
        self, request: concepts_pb2.GetEncoderRequest, context: Context
    ) -> concepts_pb2.GetEncoderResponse:
        async with self._encoder(request.name, field="name") as (project, served):
            return concepts_pb2.GetEncoderResponse(encoder=replies.encoder(project, served))

    async def EmbedTexts(
        self, request: concepts_pb2.EmbedTextsRequest, context: Context
    ) -> concepts_pb2.EmbedTextsResponse:
        texts = check_texts(request.texts)
        tally = Tally()
        async with self._encoder(request.encoder) as (project, served):
            rows = await served.texts.embed(texts, project=project, tally=tally)
        timings = tally.timings()
        response = concepts_pb2.EmbedTextsResponse(encoder_digest=served.model.digest)
        with encoding(timings):
            response.embeddings.CopyFrom(to_message(rows))
        response.timings.CopyFrom(timings)
        return response

    async def EmbedImages(
        self, request: concepts_pb2.EmbedImagesRequest, context: Context
    ) -> concepts_pb2.EmbedImagesResponse:
        check_batch(request.items, limit=self._settings.max_batch_items)
        async with self._encoder(request.encoder) as (project, served):
            flow = Flow(project, request.execution == items_pb2.EXECUTION_SHARD)
            outcomes, timings = await self._run(
                request.items, flow, served, served.images, time_left_s(context)
            )
        response = concepts_pb2.EmbedImagesResponse(encoder_digest=served.model.digest)
        with encoding(timings):
            response.results.extend(
                replies.embedding(item.item_id, outcome)
                for item, outcome in zip(request.items, outcomes, strict=True)
            )
        response.timings.CopyFrom(timings)
        return response

    async def EmbedRegions(
        self, request: concepts_pb2.EmbedRegionsRequest, context: Context
    ) -> concepts_pb2.EmbedRegionsResponse:
        check_batch(request.items, limit=self._settings.max_batch_items)
        async with self._encoder(request.encoder) as (project, served):
            flow = Flow(project, request.execution == items_pb2.EXECUTION_SHARD)
            outcomes, timings = await self._run(
                request.items, flow, served, served.regions, time_left_s(context)
            )
        response = concepts_pb2.EmbedRegionsResponse(
            encoder_digest=served.model.digest, region_digest=served.model.region_digest
        )
        with encoding(timings):
            response.results.extend(
                replies.regions(item.item_id, outcome)
                for item, outcome in zip(request.items, outcomes, strict=True)
            )
        response.timings.CopyFrom(timings)
        return response

    async def ScorePresence(
        self, request: concepts_pb2.ScorePresenceRequest, context: Context
    ) -> concepts_pb2.ScorePresenceResponse:
        concepts = check_words(request.concepts, field="concepts")
        check_batch(request.items, limit=self._settings.max_batch_items)
        tally = Tally()
        async with self._encoder(request.encoder) as (project, served):
            mu = _mean(request.image_mean, served, field="image_mean")
            tau = _mean(request.text_mean, served, field="text_mean")
            texts = await served.texts.embed(concepts, project=project, tally=tally)
            if tau is None:
                tau = await self._corpus_mean(served)
            outcomes, timings = await self._run(
                request.items, Flow(project), served, served.regions, time_left_s(context)
            )
        good = [one.result[0] for one in outcomes if isinstance(one, Served)]
        scores = await asyncio.to_thread(
            presence,
            np.concatenate(good) if good else np.zeros((0, texts.shape[1]), np.float16),
            np.cumsum([0, *map(len, good)]),
            texts,
            served.model.reference_mean if mu is None else mu,
            tau,
        )
        ids = [item.item_id for item in request.items]
        timings = together([tally.timings(), timings])
        response = concepts_pb2.ScorePresenceResponse(encoder_digest=served.model.digest)
        with encoding(timings):
            response.results.extend(replies.presences(ids, outcomes, scores))
        response.timings.CopyFrom(timings)
        return response

    async def ListConceptSets(
        self, request: concepts_pb2.ListConceptSetsRequest, context: Context
    ) -> concepts_pb2.ListConceptSetsResponse:
        project = check_id(request.project, field="project")
        found = await asyncio.to_thread(
            lambda: [self._sets.get(project, name) for name in self._sets.names(project)]
        )
        return concepts_pb2.ListConceptSetsResponse(
            concept_sets=[replies.concept_set(project, one, full=False) for one in found]
        )

    async def GetConceptSet(
        self, request: concepts_pb2.GetConceptSetRequest, context: Context
    ) -> concepts_pb2.GetConceptSetResponse:
        project, set_id = parse(request.name, "conceptSets")
        found = await asyncio.to_thread(self._sets.get, project, set_id)
        return concepts_pb2.GetConceptSetResponse(
            concept_set=replies.concept_set(project, found, full=True)
        )

    async def CreateConceptSet(
        self, request: concepts_pb2.CreateConceptSetRequest, context: Context
    ) -> concepts_pb2.CreateConceptSetResponse:
        project, set_id = parse(request.concept_set.name, "conceptSets", field="concept_set.name")
        made = await asyncio.to_thread(
            self._sets.create, project, set_id, list(request.concept_set.words)
        )
        return concepts_pb2.CreateConceptSetResponse(
            concept_set=replies.concept_set(project, made, full=True)
        )

    async def FilterConcepts(
        self, request: concepts_pb2.FilterConceptsRequest, context: Context
    ) -> concepts_pb2.FilterConceptsResponse:
        words = check_words(request.words)
        names = check_texts(request.class_names, field="class_names")
        options = _filter_settings(request.filter, len(words))
        tally = Tally()
        async with self._encoder(request.encoder) as (project, served):
            rows = await served.texts.embed(words, project=project, tally=tally)
            classes = await served.texts.embed(names, project=project, tally=tally)
        done = await asyncio.to_thread(
            filter_words,
            words,
            names,
            rows.astype(np.float32),
            classes.astype(np.float32),
            settings=options,
        )
        return concepts_pb2.FilterConceptsResponse(
            kept=[words[at] for at in done.kept],
            dropped=[
                concepts_pb2.DroppedConcept(word=one.word, reason=one.reason)
                for one in done.dropped
            ],
            embeddings=to_message(rows[list(done.kept)]),
            text_mean=to_message(text_mean(rows)),
            encoder_digest=served.model.digest,
            timings=tally.timings(),
        )

    async def ExportEncoder(
        self, request: concepts_pb2.ExportEncoderRequest, context: Context
    ) -> concepts_pb2.ExportEncoderResponse:
        async with self._encoder(request.encoder) as (project, served):
            data = await self._registry.onnx(served)
        digest = await asyncio.to_thread(self._blobs.put, project, data)
        return concepts_pb2.ExportEncoderResponse(
            onnx=items_pb2.BlobRef(digest=digest, size_bytes=len(data)),
            encoder_digest=served.model.digest,
        )

    async def canary(self) -> None:
        """Embed one small image with the preloaded encoder, through the queue."""
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), (90, 120, 30)).save(buffer, "PNG")
        async with self._registry.use(self._settings.preload) as served:
            prepared = await asyncio.to_thread(self._intake.read, buffer.getvalue(), served.model)
            await served.images.probe(prepared.square)

    async def close(self) -> None:
        """Stop the queues and the decoders."""
        await self._registry.close()
        self._intake.close()

    @asynccontextmanager
    async def _encoder(
        self, name: str, *, field: str = "encoder"
    ) -> AsyncIterator[tuple[str, ServedEncoder]]:
        """The project of a name and its encoder, which stays in memory while the block runs."""
        project, encoder_id = parse(name, "encoders", field=field)
        async with self._registry.use(encoder_id) as served:
            yield project, served

    async def _run(
        self,
        items: Sequence[items_pb2.ImageInput],
        flow: Flow,
        served: ServedEncoder,
        batcher: Batcher[Tensor, R],
        left_s: float | None,
    ) -> tuple[list[Served[R] | status_pb2.Status], items_pb2.Timings]:
        """Prepare images and run the good ones, if all can be done in `left_s` seconds; one outcome
        per item, in order."""
        with batcher.admitted(len(items), flow, time_left_s=left_s) as place:
            prepared = await self._intake.prepare(items, flow, served.model)
            ready = [one for one in prepared if isinstance(one, Prepared)]
            rows = await batcher.submit([one.square for one in ready], place=place)
        answers = iter(rows)
        outcomes = [
            one if isinstance(one, status_pb2.Status) else next(answers) for one in prepared
        ]
        return outcomes, timings_of(rows, sum(one.spent_ms for one in ready))

    async def _corpus_mean(self, served: ServedEncoder) -> Array:
        """The default tau: mean text embedding of the built-in corpus, float32 [D]."""
        if served.model.id not in self._taus:
            rows = await served.texts.embed(built_in()[self._settings.corpus].words)
            self._taus[served.model.id] = text_mean(rows)
        return self._taus[served.model.id]


def text_mean(rows: Array) -> Array:
    """tau: mean float32 [D] of text embeddings [n, D]."""
    return np.asarray(rows.astype(np.float64).mean(axis=0), dtype=np.float32)


def _filter_settings(given: concepts_pb2.ConceptFilter, words: int) -> FilterSettings:
    """The thresholds of a request; 0 means the default. Raises InvalidInput.

    Of a short list some pair is always nearest, so there the default leaves similar words alone.
    """
    percentiles = (given.class_similarity_percentile, given.pair_similarity_percentile)
    if given.max_characters < 0 or not all(0 <= p <= 100 for p in percentiles):
        raise InvalidInput(
            "filter: max_characters must not be negative, percentiles lie from 0 to 100",
            field="filter",
        )
    usual = FilterSettings()
    if words < _WORDS_FOR_PERCENTILES:
        usual = FilterSettings(class_percentile=100, duplicate_percentile=100)
    return FilterSettings(
        max_characters=given.max_characters or usual.max_characters,
        class_percentile=given.class_similarity_percentile or usual.class_percentile,
        duplicate_percentile=given.pair_similarity_percentile or usual.duplicate_percentile,
    )


def _mean(message: tensor_pb2.Tensor, served: ServedEncoder, *, field: str) -> Array | None:
    """A mean vector of a request, None where it is not given. Raises InvalidInput."""
    if not message.data and not message.shape:
        return None
    array = from_message(message, field=field)
    array = expect(array, shape=(served.model.embedding_dim,), field=field)
    return array.astype(np.float32)
