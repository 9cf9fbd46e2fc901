"""SampleTargets from end to end: records or sequences in, a target shard out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
from stillhouse.common.v1 import items_pb2
from stillhouse.teacher.v1 import teacher_pb2

from services.common import logs
from services.common.blobs import BlobStore, check_digest
from services.common.errors import InvalidInput
from services.common.targets import SparseTargets, TargetShard
from services.common.tensors import Array, expect, from_message
from services.common.texts import unpack_records
from services.teacher.language.batching import plan
from services.teacher.language.options import target_options
from services.teacher.language.prompts import check_length, given_ids
from services.teacher.language.registry import ServedLanguageModel
from services.teacher.language.targets import TargetOptions, sparse_targets
from services.teacher.settings import TeacherSettings
from services.torch_common.language.packing import Packed, PackedSequence, pack

R = TypeVar("R")
_log = logs.get(__name__)


class InThread(Protocol):
    """Runs work on `items` items in the models' one thread."""

    def __call__(self, work: Callable[[], R], *, items: int = 1) -> Awaitable[R]: ...


class ShardWork:
    """One SampleTargets call. Batches are made of the request's own sequences alone, longest first,
    so that the result depends on the request and the model and on nothing else."""

    def __init__(
        self,
        served: ServedLanguageModel,
        settings: TeacherSettings,
        blobs: BlobStore,
        in_thread: InThread,
    ) -> None:
        self._served, self._settings = served, settings
        self._blobs, self._in_thread = blobs, in_thread

    async def run(
        self, project: str, request: teacher_pb2.SampleTargetsRequest
    ) -> teacher_pb2.SampleTargetsResponse:
        """Return the reply, without what computing took. Raises InvalidInput, NotFound."""
        options = target_options(request)
        vocab = self._served.loaded.vocab_size
        options = replace(options, top_k=min(options.top_k, vocab))
        started_s = time.perf_counter()
        packed = await asyncio.to_thread(self._packed, project, request)
        packed_s = time.perf_counter()
        found = await self._predict(packed.sequences, options)
        computed_s = time.perf_counter()
        data = await asyncio.to_thread(
            partial(TargetShard.encode, found, kind=options.kind, temperature=options.temperature)
        )
        encoded_s = time.perf_counter()
        targets = sum(one.target_count for one in packed.sequences)
        kept = sum(_kept(one, options) for one in found)
        reply = teacher_pb2.SampleTargetsResponse(
            sequence_count=len(found),
            token_count=targets,
            bytes_per_token=len(data) / max(targets, 1),
            draws_per_token=kept / max(targets, 1),
            model_digest=self._served.loaded.digest,
            skipped=packed.skipped,
            timings=items_pb2.Timings(
                preprocess_ms=(packed_s - started_s) * 1000,
                encode_ms=(encoded_s - computed_s) * 1000,
            ),
        )
        await self._store(project, request, data, reply)
        _log.info(
            "targets",
            sequences=len(found),
            tokens=targets,
            bytes_per_token=round(reply.bytes_per_token, 2),
            draws_per_token=round(reply.draws_per_token, 2),
        )
        return reply

    async def _store(
        self,
        project: str,
        request: teacher_pb2.SampleTargetsRequest,
        data: bytes,
        reply: teacher_pb2.SampleTargetsResponse,
    ) -> None:
        if request.WhichOneof("source") == "text_shard":
            reply.blob.digest = await asyncio.to_thread(self._blobs.put, project, data)
            reply.blob.size_bytes = len(data)
            return
        if len(data) > self._settings.max_message_bytes // 2:
            raise InvalidInput(
                f"sequences: their targets take {len(data):,} bytes; send fewer, or a text_shard",
                field="sequences",
            )
        reply.inline = data

    async def _predict(
        self, sequences: list[PackedSequence], options: TargetOptions
    ) -> list[SparseTargets]:
        loaded, head = self._served.loaded, self._served.head
        found: dict[int, SparseTargets] = {}
        sizes = [len(one.tokens) for one in sequences]
        for group in self._plan(sizes):
            batch = [sequences[at] for at in group]
            work = partial(sparse_targets, loaded, head, batch, options)
            done = await self._in_thread(work, items=len(batch))
            found.update(zip(group, done, strict=True))
        return [found[at] for at in range(len(sequences))]

    def _plan(self, sizes: list[int]) -> list[list[int]]:
        settings = self._settings
        return plan(sizes, settings.max_batch_tokens, pass_tokens=settings.pass_tokens_in_force)

    def _packed(self, project: str, request: teacher_pb2.SampleTargetsRequest) -> Packed:
        source = request.WhichOneof("source")
        if source == "text_shard":
            return self._records(project, request.text_shard)
        if source == "sequences":
            return Packed(self._given(request.sequences))
        raise InvalidInput("source: one of text_shard, sequences is required", field="source")

    def _records(self, project: str, shard: teacher_pb2.TextShard) -> Packed:
        self._check_length(shard.sequence_length)
        data = self._blobs.get(project, check_digest(shard.records.digest, field="records"))
        return pack(unpack_records(data), self._served.loaded.encoder, shard.sequence_length)

    def _given(self, given: teacher_pb2.TokenSequences) -> list[PackedSequence]:
        vocab = self._served.loaded.vocab_size
        tokens = given_ids(given.token_ids, vocab, field="sequences.token_ids")
        offsets = expect(
            from_message(given.offsets, field="offsets"), shape=(None,), field="offsets"
        )
        mask = expect(
            from_message(given.is_target, field="is_target"),
            shape=(len(tokens),),
            field="is_target",
        )
        _check_layout(tokens, offsets, mask, limit=self._settings.max_batch_items)
        ends = zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
        sequences = [PackedSequence(tokens[a:b], mask[a:b].astype(np.uint8)) for a, b in ends]
        self._check_length(max(len(one.tokens) for one in sequences))
        if any(one.is_target[0] for one in sequences):
            raise InvalidInput(
                "is_target: the first token of a sequence is none", field="is_target"
            )
        if not all(one.target_count for one in sequences):
            raise InvalidInput("is_target: a sequence without a target", field="is_target")
        return sequences

    def _check_length(self, tokens: int) -> None:
        context = self._served.loaded.context_length
        check_length(tokens, context=context, budget=self._settings.max_batch_tokens)


def _check_layout(tokens: Array, offsets: Array, mask: Array, *, limit: int) -> None:
    count = len(offsets) - 1
    if offsets.dtype != np.int64 or mask.dtype != np.uint8 or (mask > 1).any():
        raise InvalidInput("sequences: offsets are int64, is_target is uint8 of 0 and 1")
    if not 1 <= count <= limit:
        raise InvalidInput(f"sequences: {count} of them, 1 to {limit} are allowed", field="offsets")
    if offsets[0] != 0 or offsets[-1] != len(tokens) or (offsets[1:] <= offsets[:-1]).any():
        raise InvalidInput("offsets: must rise from 0 to the number of tokens", field="offsets")


def _kept(one: SparseTargets, options: TargetOptions) -> float:
    return float(one.values.sum()) if options.kind == "sampled" else float(len(one.ids))
