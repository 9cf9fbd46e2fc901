"""Embeddings that the gateway answers from its cache, on a real redis-server."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pytest
from stillhouse.common.v1 import info_pb2_grpc, items_pb2
from stillhouse.concepts.v1 import concepts_pb2 as pb
from stillhouse.concepts.v1 import concepts_pb2_grpc
from stillhouse.gateway.v1 import models_pb2, models_pb2_grpc
from stillhouse.student.v1 import student_pb2

from services.common.blobs import BlobStore
from services.common.catalogue import Catalogue
from services.common.errors import InvalidInput, PeerUnavailable
from services.common.tensors import Array, from_message, to_message
from services.gateway.cache import EmbeddingCache, Regions, decode_row, encode_row
from services.gateway.image_embeddings import ImageEmbeddings
from services.gateway.keys import ImageSpace, RegionSpace, image_key
from services.gateway.models_servicer import ModelServicer
from services.gateway.peers import Peers
from services.gateway.settings import GatewaySettings
from services.gateway.store import Store
from services.gateway.student_calls import Serving, StudentCalls
from services.gateway.student_files import StudentFile
from tests.gateway.parts import serving
from tests.gateway.student_world import Limited
from tests.gateway.test_cache import Server

ENCODER = "projects/default/encoders/made-up"


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def row(key: str) -> Array:
    return np.frombuffer(bytes.fromhex(key), np.uint8)[:8].astype(np.float16)


class Concepts(concepts_pb2_grpc.ConceptsServiceServicer):
    """Embeds an image as the first bytes of its digest; refuses those whose digest it dislikes."""

    def __init__(self) -> None:
        self.encoder_digest, self.batches, self.bad = "e" * 64, [], set[str]()

    async def GetEncoder(self, request: pb.GetEncoderRequest, context: Any) -> Any:
        encoder = pb.Encoder(digest=self.encoder_digest, preprocessing_digest="f" * 64)
        return pb.GetEncoderResponse(encoder=encoder)

    async def EmbedImages(self, request: pb.EmbedImagesRequest, context: Any) -> Any:
        self.batches.append([item.item_id for item in request.items])
        response = pb.EmbedImagesResponse(encoder_digest=self.encoder_digest)
        for item in request.items:
            key = item.digest or hashlib.sha256(item.data).hexdigest()
            if key in self.bad:
                error = InvalidInput("damaged").to_status()
                response.results.add(item_id=item.item_id, error=error)
            else:
                response.results.add(item_id=item.item_id, embedding=to_message(row(key)))
        return response

    async def EmbedRegions(self, request: pb.EmbedRegionsRequest, context: Any) -> Any:
        self.batches.append([item.item_id for item in request.items])
        response = pb.EmbedRegionsResponse(encoder_digest=self.encoder_digest)
        for item in request.items:
            rows, cells = to_message(row(item.digest)[None]), to_message(np.ones((1, 1), np.uint8))
            response.results.add(
                item_id=item.item_id, regions=pb.Regions(embeddings=rows, map=cells)
            )
        return response


@asynccontextmanager
async def peers_of(concepts: Concepts, most: int) -> AsyncIterator[Peers]:
    def register(server: grpc.aio.Server) -> None:
        concepts_pb2_grpc.add_ConceptsServiceServicer_to_server(concepts, server)
        info_pb2_grpc.add_InfoServiceServicer_to_server(Limited(most), server)

    peers = Peers.connect(GatewaySettings())
    async with serving(register) as channel:
        teacher, unused, student = peers.channels
        await unused.close()
        stub = concepts_pb2_grpc.ConceptsServiceStub(channel)
        yield replace(peers, concepts=stub, channels=(teacher, channel, student))
        await peers.close()


World = tuple[Concepts, Peers, EmbeddingCache]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    redis, concepts = Server(tmp_path / "redis.sock"), Concepts()
    cache = EmbeddingCache(redis.url)
    async with peers_of(concepts, 3) as peers:
        yield concepts, peers, cache
    await cache.close()
    redis.kill()


def by_digest(*names: str) -> list[items_pb2.ImageInput]:
    return [items_pb2.ImageInput(item_id=name, digest=digest(name)) for name in names]


async def test_what_was_embedded_once_is_not_computed_again(world: World) -> None:
    concepts, peers, cache = world
    embeddings = ImageEmbeddings(peers, cache)
    first = await embeddings.embed(ENCODER, by_digest("a", "b"))
    assert (first.cached, concepts.batches) == (0, [["a", "b"]])
    again = await embeddings.embed(ENCODER, by_digest("b", "c", "a"))
    assert (again.cached, concepts.batches[1:]) == (2, [["c"]])
    for name, got in zip("bca", again.outcomes, strict=True):
        np.testing.assert_array_equal(got, row(digest(name)))
    inline = [items_pb2.ImageInput(item_id="x", data=b"a")]
    assert (await embeddings.embed(ENCODER, inline)).cached == 1
    assert len(concepts.batches) == 2


async def test_items_fail_alone_and_are_not_kept(world: World) -> None:
    concepts, peers, cache = world
    concepts.bad = {digest("b")}
    items = by_digest("a", "b")
    items += [items_pb2.ImageInput(item_id="none"), items_pb2.ImageInput(digest="xyz")]
    for cached in (0, 1):
        found = await ImageEmbeddings(peers, cache).embed(ENCODER, items)
        assert found.cached == cached
        assert [getattr(one, "code", None) for one in found.outcomes] == [None, 3, 3, 3]
    assert concepts.batches == [["a", "b"], ["b"]]


async def test_batches_keep_to_the_services_limits_and_repeats_are_sent_once(world: World) -> None:
    concepts, peers, cache = world
    names = ["a", "b", "a", "c", "d", "b", "e"]
    found = await ImageEmbeddings(peers, cache).embed(ENCODER, by_digest(*names))
    assert [len(batch) for batch in concepts.batches] == [3, 2]
    for name, got in zip(names, found.outcomes, strict=True):
        np.testing.assert_array_equal(got, row(digest(name)))


async def test_another_encoder_under_the_name_is_not_mixed_with_the_one_before(
    world: World,
) -> None:
    concepts, peers, cache = world
    embeddings = ImageEmbeddings(peers, cache)
    await embeddings.embed(ENCODER, by_digest("a"))
    concepts.encoder_digest = "d" * 64
    with pytest.raises(PeerUnavailable, match="replaced"):
        await embeddings.embed(ENCODER, by_digest("b"))
    found = await embeddings.embed(ENCODER, by_digest("a", "b"))
    assert (found.encoder_digest, found.cached) == ("d" * 64, 0)


async def test_the_rpc(world: World, tmp_path: Path) -> None:
    concepts, peers, cache = world
    concepts.bad = {digest("b")}
    store = Store(f"sqlite:///{tmp_path}/gateway.db")
    servicer = ModelServicer(
        store, peers, BlobStore(str(tmp_path)), ImageEmbeddings(peers, cache), max_batch_items=4
    )
    async with serving(
        lambda server: models_pb2_grpc.add_ModelServiceServicer_to_server(servicer, server)
    ) as channel:
        stub = models_pb2_grpc.ModelServiceStub(channel)
        request = models_pb2.EmbedProjectImagesRequest(encoder=ENCODER, items=by_digest("a", "b"))
        reply = await stub.EmbedProjectImages(request)
        assert [one.item_id for one in reply.results] == ["a", "b"]
        np.testing.assert_array_equal(from_message(reply.results[0].embedding), row(digest("a")))
        assert reply.results[1].error.message == "damaged"
        assert (await stub.EmbedProjectImages(request)).cached_count == 1
        for wrong in ({"items": by_digest(*"abcde")}, {"encoder": "made-up"}):
            asked = {"encoder": ENCODER, "items": by_digest("a"), **wrong}
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.EmbedProjectImages(models_pb2.EmbedProjectImagesRequest(**asked))
            assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_student_takes_regions_that_a_job_has_stored(world: World, tmp_path: Path) -> None:
    concepts, peers, cache = world
    origin = {
        "encoder_digest": "e" * 64,
        "preprocessing_digest": "f" * 64,
        "region_digest": "c" * 64,
    }
    none = np.zeros((1, 1), np.float32)
    file = StudentFile(none, none[0], none, none[0], none[0], none, {"provenance": origin})
    student = Serving("default", ENCODER, student_pb2.StudentRef(), file)
    stored = Regions(np.full((2, 8), 7, np.float16), np.ones((2, 2), np.uint8))
    await cache.put(RegionSpace("default", *origin.values()), {digest("b"): stored})
    calls = StudentCalls(peers, BlobStore(str(tmp_path)), Catalogue([], {}), cache)
    found, _ = await calls.regions(student, by_digest("a", "b", "c"))
    assert concepts.batches == [["a", "c"]]
    assert [float(one.embeddings[0, 0]) for one in found if isinstance(one, Regions)] == [
        float(row(digest("a"))[0]),
        7.0,
        float(row(digest("c"))[0]),
    ]


def test_a_stored_row_is_checked() -> None:
    value = encode_row(row(digest("a")))
    np.testing.assert_array_equal(decode_row(value), row(digest("a")))
    changed = bytearray(value)
    changed[-1] ^= 1
    for bad in (b"", value[:-1], value + b"x", bytes(changed), b"SHR1" + value[4:]):
        assert decode_row(bad) is None


def test_a_key_names_all_its_value_depends_on() -> None:
    space = ImageSpace("default", "1" * 64, "2" * 64).check()
    keys = {image_key(space, digest("a")), image_key(space, digest("b"))}
    keys |= {
        image_key(replace(space, **{field: value}), digest("a"))
        for field, value in (
            ("project", "other"),
            ("encoder_digest", "3" * 64),
            ("preprocessing_digest", "3" * 64),
        )
    }
    assert len(keys) == 5
    with pytest.raises(InvalidInput):
        image_key(space, "no digest")
