"""Whole-image embeddings for online calls: from the cache by digest, else from ConceptsService."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from google.rpc import status_pb2
from stillhouse.common.v1 import items_pb2
from stillhouse.concepts.v1 import concepts_pb2

from services.common.blobs import check_digest, digest_of
from services.common.errors import InvalidInput, PeerUnavailable, StillhouseError
from services.common.inputs import MAX_ITEM_ID
from services.common.names import parse
from services.common.tensors import Array, expect, from_message
from services.gateway.cache import EmbeddingCache
from services.gateway.keys import ImageSpace
from services.gateway.peers import Peers

_KNOWN_S = 30.0
"""How long an encoder's digests are taken as known: so long may the embeddings of one that was
replaced still come from the cache, under its own digest."""
_EMBED_S = 120.0

Outcome: TypeAlias = "Array | status_pb2.Status"


@dataclass(frozen=True)
class Embedded:
    """One outcome per item, float16 [D] or why there is none, and where they came from."""

    outcomes: list[Outcome]
    encoder_digest: str
    cached: int


class ImageEmbeddings:
    """Reads through the cache. Values that a job stored are others, and are not mixed with these:
    a job's come from one fixed batch shape."""

    def __init__(self, peers: Peers, cache: EmbeddingCache) -> None:
        self._peers, self._cache = peers, cache
        self._spaces: dict[str, tuple[float, ImageSpace]] = {}

    async def embed(self, encoder: str, items: Sequence[items_pb2.ImageInput]) -> Embedded:
        """Embed images with the encoder of a name. Raises StillhouseError where it cannot be
        asked; an item that fails harms no other."""
        space = await self._space(encoder)
        keys = await _keys(items)
        digests = [key for key in keys if isinstance(key, str)]
        found: dict[str, Outcome] = {
            digest: row
            for digest, row in zip(digests, await self._cache.rows(space, digests), strict=True)
            if row is not None
        }
        cached = sum(digest in found for digest in digests)
        missing = {
            key: item
            for key, item in zip(keys, items, strict=True)
            if isinstance(key, str) and key not in found
        }
        if missing:
            found |= await self._compute(encoder, space, missing)
        outcomes = [found[key] if isinstance(key, str) else key for key in keys]
        return Embedded(outcomes, space.encoder_digest, cached)

    async def _space(self, encoder: str) -> ImageSpace:
        until_s, space = self._spaces.get(encoder, (0.0, None))
        if space is None or until_s < time.monotonic():
            project, _ = parse(encoder, "encoders", field="encoder")
            described = (
                await self._peers.ask(
                    self._peers.concepts.GetEncoder,
                    concepts_pb2.GetEncoderRequest(name=encoder),
                    timeout_s=self._peers.shard_timeout_s,
                )
            ).encoder
            space = ImageSpace(project, described.digest, described.preprocessing_digest).check()
            self._spaces[encoder] = (time.monotonic() + _KNOWN_S, space)
        return space

    async def _compute(
        self, encoder: str, space: ImageSpace, missing: dict[str, items_pb2.ImageInput]
    ) -> dict[str, Outcome]:
        """Embed items by digest, and keep what could be embedded."""
        found: dict[str, Outcome] = {}
        pairs = list(missing.items())
        for part in await self._peers.parts("concepts", pairs, lambda pair: pair[1].ByteSize()):
            request = concepts_pb2.EmbedImagesRequest(
                encoder=encoder, items=[item for _, item in part]
            )
            method = self._peers.concepts.EmbedImages
            reply = await self._peers.ask(method, request, timeout_s=_EMBED_S)
            if reply.encoder_digest != space.encoder_digest:
                self._spaces.pop(encoder, None)
                raise PeerUnavailable(f"{encoder} was replaced just now; try again")
            for (digest, _), result in zip(part, reply.results, strict=True):
                found[digest] = _outcome(result)
        rows = {d: one for d, one in found.items() if not isinstance(one, status_pb2.Status)}
        await self._cache.put_rows(space, rows)
        return found


async def _keys(items: Sequence[items_pb2.ImageInput]) -> list[str | status_pb2.Status]:
    """Every item's digest, or why it is no item."""
    keys = [_given(item) for item in items]
    inline = [at for at, key in enumerate(keys) if key == ""]
    if inline:
        made = await asyncio.to_thread(lambda: [digest_of(items[at].data) for at in inline])
        for at, key in zip(inline, made, strict=True):
            keys[at] = key
    return keys


def _given(item: items_pb2.ImageInput) -> str | status_pb2.Status:
    """The digest that an item brings; empty where it brings the image itself."""
    try:
        if len(item.item_id) > MAX_ITEM_ID:
            raise InvalidInput(f"item_id: longer than {MAX_ITEM_ID} characters", field="item_id")
        if item.WhichOneof("source") == "digest":
            return check_digest(item.digest)
        if item.WhichOneof("source") == "data":
            return ""
        raise InvalidInput("source: one of digest, data is required", field="source")
    except StillhouseError as error:
        return error.to_status()


def _outcome(result: concepts_pb2.EmbedImageResult) -> Outcome:
    if result.WhichOneof("outcome") != "embedding":
        return result.error
    row = from_message(result.embedding, field="embedding")
    return np.asarray(expect(row, shape=(None,), field="embedding"), "<f2")
