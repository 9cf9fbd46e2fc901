"""What ConceptsService gives one project of another's images, words and sets: nothing, and no sign.

It is asked directly, as whoever gets past the gateway would. The tables are checked against the
descriptors: an RPC without a row fails.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import pytest
import pytest_asyncio
from stillhouse.common.v1 import items_pb2
from stillhouse.concepts.v1 import concepts_pb2 as pb
from stillhouse.concepts.v1 import concepts_pb2_grpc

from services.common.blobs import BlobStore
from services.common.catalogue import Catalogue
from services.concepts.registry import Registry
from services.concepts.servicer import ConceptsServicer
from services.concepts.settings import ConceptsSettings
from tests import isolating
from tests.concepts.test_registry import entry, model
from tests.gateway.parts import serving
from tests.isolating import OURS, THEIRS
from tests.support import photo

pytestmark = pytest.mark.asyncio(loop_scope="module")
RPCS = isolating.methods(pb.DESCRIPTOR.services_by_name["ConceptsService"])
SHARD = items_pb2.EXECUTION_SHARD
WORDS = ["the secret recipe", "what nobody else asks for"]


@dataclass(frozen=True)
class Owned(isolating.Owned):
    """An image by digest, a concept set by name."""

    image: str
    words: str


def encoder(project: str) -> str:
    return f"projects/{project}/encoders/small"


def image(digest: str) -> list[items_pb2.ImageInput]:
    return [items_pb2.ImageInput(digest=digest)]


def set_of(project: str, name: str) -> str:
    return f"projects/{project}/conceptSets/{name}"


REFUSED: isolating.Rows = {
    "EmbedImages": [
        lambda p, o: pb.EmbedImagesRequest(encoder=encoder(p), items=image(o.image)),
        lambda p, o: pb.EmbedImagesRequest(
            encoder=encoder(p), items=image(o.image), execution=SHARD
        ),
    ],
    "EmbedRegions": [
        lambda p, o: pb.EmbedRegionsRequest(encoder=encoder(p), items=image(o.image)),
        lambda p, o: pb.EmbedRegionsRequest(
            encoder=encoder(p), items=image(o.image), execution=SHARD
        ),
    ],
    "ScorePresence": [
        lambda p, o: pb.ScorePresenceRequest(
            encoder=encoder(p), items=image(o.image), concepts=["red"]
        )
    ],
    "GetConceptSet": [lambda p, o: pb.GetConceptSetRequest(name=set_of(p, o.words))],
}
"""Requests for what a project has by name or digest."""
UNSEEN: isolating.Rows = {"ListConceptSets": [lambda p, o: pb.ListConceptSetsRequest(project=p)]}
"""Requests about all that a project has."""
ELSEWHERE = {
    **dict.fromkeys(
        ("ListEncoders", "GetEncoder", "LoadModel", "UnloadModel", "ListLoadedModels"),
        "encoders are the catalogue's, for everybody",
    ),
    **dict.fromkeys(("EmbedTexts", "FilterConcepts"), "test_words_are_remembered_for_their_own"),
    "CreateConceptSet": "test_a_set_of_the_same_name_is_another",
    "ExportEncoder": "reads the catalogue, and writes where the caller is",
}
"""RPCs that reach nothing of a project, and those that have a test of their own."""


@dataclass(frozen=True)
class Running:
    """A service, and what the project THEIRS has."""

    channel: grpc.aio.Channel
    owned: Owned
    blobs: Path


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    folder = tmp_path_factory.mktemp("isolation")
    settings = ConceptsSettings(cache_dir=folder, threads=1, preload="small")
    registry = Registry(settings, Catalogue([entry("small")], {}))
    registry._read = lambda of: model(registry, of)  # type: ignore[method-assign]
    blobs = BlobStore(str(folder / "blobs"))
    servicer = ConceptsServicer(settings, registry, blobs)

    def register(server: grpc.aio.Server) -> None:
        concepts_pb2_grpc.add_ConceptsServiceServicer_to_server(servicer, server)

    async with serving(register) as channel:
        owned = Owned(blobs.put(THEIRS, photo(1)), "palette")
        running = Running(channel, owned, folder / "blobs")
        await create(running, THEIRS, WORDS)
        yield running
    await servicer.close()


async def create(running: Running, project: str, words: list[str]) -> None:
    made = pb.ConceptSet(name=set_of(project, running.owned.words), words=words)
    request = pb.CreateConceptSetRequest(concept_set=made)
    answer = await isolating.call(running.channel, RPCS["CreateConceptSet"], request)
    assert answer.code == "OK", answer


async def test_every_rpc_is_in_a_table() -> None:
    isolating.check_tables(RPCS, REFUSED, UNSEEN, ELSEWHERE)


@pytest.mark.parametrize("name", list(REFUSED))
async def test_what_is_of_another_project_is_not_there(running: Running, name: str) -> None:
    before = isolating.stored(running.blobs)
    for ask in REFUSED[name]:
        await isolating.check_refused(running.channel, RPCS[name], ask, running.owned)
    assert isolating.stored(running.blobs) == before


@pytest.mark.parametrize("name", list(UNSEEN))
async def test_nothing_of_another_project_is_listed(running: Running, name: str) -> None:
    for ask in UNSEEN[name]:
        await isolating.check_unseen(running.channel, RPCS[name], ask, running.owned)


@pytest.mark.parametrize("name", ["EmbedTexts", "FilterConcepts"])
async def test_words_are_remembered_for_their_own_project_alone(
    running: Running, name: str
) -> None:
    """What a call spends would tell whether somebody else has asked for the same words."""
    computed = []
    for project in (THEIRS, THEIRS, OURS):
        request = {
            "EmbedTexts": pb.EmbedTextsRequest(encoder=encoder(project), texts=WORDS),
            "FilterConcepts": pb.FilterConceptsRequest(
                encoder=encoder(project), words=WORDS[:1], class_names=["a class"]
            ),
        }[name]
        (answer,) = (await isolating.call(running.channel, RPCS[name], request)).messages
        computed.append(answer.timings.batch_size)  # type: ignore[attr-defined]
    assert computed[1] == 0
    assert computed[2] == (2 if name == "EmbedTexts" else 1)  # its own words it has asked for


async def test_a_set_of_the_same_name_is_another(running: Running) -> None:
    before = isolating.stored(running.blobs)
    await create(running, OURS, ["ours"])
    assert isolating.stored(running.blobs) == before
    for project, words in ((THEIRS, WORDS), (OURS, ["ours"])):
        request = pb.GetConceptSetRequest(name=set_of(project, running.owned.words))
        (answer,) = (await isolating.call(running.channel, RPCS["GetConceptSet"], request)).messages
        assert list(answer.concept_set.words) == words  # type: ignore[attr-defined]
    BlobStore(str(running.blobs)).remove_project(OURS)
