"""The concepts service as a process, on real weights."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from PIL import Image
from stillhouse.common.v1 import items_pb2, tensor_pb2
from stillhouse.concepts.v1 import concepts_pb2, concepts_pb2_grpc

from services.common.blobs import BlobStore, digest_of
from services.common.presence import presence
from services.common.tensors import from_message, to_message
from tests.support import Service, hostile_batch, photo, resident_mib, service

pytestmark = pytest.mark.e2e

ENCODER = "projects/default/encoders/effl2-minilm"
SHARD = items_pb2.EXECUTION_SHARD
Stub = concepts_pb2_grpc.ConceptsServiceStub


@pytest.fixture(scope="module")
def concepts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Path]]:
    folder = tmp_path_factory.mktemp("concepts")
    # Without a memory of texts every call computes, so that what texts depend on can be seen.
    with service("concepts", folder, CONCEPTS_TEXT_CACHE="0") as running:
        yield running, folder


@pytest.fixture(scope="module")
def stub(concepts: tuple[Service, Path]) -> Iterator[Stub]:
    with grpc.insecure_channel(concepts[0].address) as channel:
        yield Stub(channel)


def inputs(data: Sequence[bytes]) -> list[items_pb2.ImageInput]:
    return [items_pb2.ImageInput(item_id=str(n), data=one) for n, one in enumerate(data)]


def embed(stub: Stub, data: Sequence[bytes], **more: object) -> concepts_pb2.EmbedImagesResponse:
    request = concepts_pb2.EmbedImagesRequest(encoder=ENCODER, items=inputs(data), **more)
    return stub.EmbedImages(request, timeout=240)


def regions(stub: Stub, data: Sequence[bytes], **more: object) -> concepts_pb2.EmbedRegionsResponse:
    request = concepts_pb2.EmbedRegionsRequest(encoder=ENCODER, items=inputs(data), **more)
    return stub.EmbedRegions(request, timeout=240)


def region_bytes(reply: concepts_pb2.EmbedRegionsResponse) -> list[bytes]:
    return [one.regions.embeddings.data + one.regions.map.data for one in reply.results]


def test_every_item_of_a_hostile_batch_gets_its_own_answer(
    stub: Stub, concepts: tuple[Service, Path]
) -> None:
    before = resident_mib(concepts[0].process.pid)
    batch = hostile_batch()
    reply = regions(stub, [data for data, _ in batch.values()])
    usable = {
        name: one.WhichOneof("outcome") == "regions"
        for name, one in zip(batch, reply.results, strict=True)
    }
    assert usable == {name: good for name, (_, good) in batch.items()}
    assert {one.error.code for one in reply.results if one.HasField("error")} == {3}
    assert [one.item_id for one in reply.results] == [str(n) for n in range(len(batch))]
    assert resident_mib(concepts[0].process.pid) < before + 600
    assert embed(stub, [photo(1)]).results[0].HasField("embedding")


def test_regions_are_unit_rows_with_a_map_and_start_with_the_whole_image(stub: Stub) -> None:
    data = [photo(n) for n in range(3)]
    dense, whole = regions(stub, data, execution=SHARD), embed(stub, data, execution=SHARD)
    for one, other in zip(dense.results, whole.results, strict=True):
        rows, cells = from_message(one.regions.embeddings), from_message(one.regions.map)
        np.testing.assert_allclose(np.linalg.norm(rows.astype(np.float32), axis=1), 1, atol=2e-3)
        assert set(np.unique(cells)) == set(range(1, len(rows) - 9))
        assert cells.shape == (9, 9)
        np.testing.assert_array_equal(rows[0], from_message(other.embedding))


def test_concurrent_single_images_share_batches(stub: Stub) -> None:
    with ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(lambda n: embed(stub, [photo(n)]), range(32)))
    assert max(reply.timings.batch_size for reply in replies) > 1


def test_a_shard_does_not_depend_on_its_neighbours(stub: Stub) -> None:
    data = [photo(n) for n in range(20)]
    alone = region_bytes(regions(stub, data, execution=SHARD))
    with ThreadPoolExecutor(8) as pool:
        noise = [pool.submit(embed, stub, [photo(100 + n)] * (n % 5 + 1)) for n in range(8)]
        noise += [pool.submit(regions, stub, [photo(200 + n)] * (n % 3 + 1)) for n in range(8)]
        crowded = regions(stub, [*data[7:], b"broken", *data[:7]], execution=SHARD)
        for one in noise:
            one.result()
    assert crowded.results[13].HasField("error")
    kept = region_bytes(crowded)
    assert [*kept[14:], *kept[:13]] == alone
    assert region_bytes(regions(stub, [data[9]], execution=SHARD)) == [alone[9]]


def test_a_text_does_not_depend_on_its_neighbours(stub: Stub) -> None:
    texts = ["red", "a very long description of netted rind " * 8, "striped", "citrus fruit"]
    texts += [f"word number {n}" for n in range(40)]

    def rows(chosen: list[str]) -> np.ndarray:
        request = concepts_pb2.EmbedTextsRequest(encoder=ENCODER, texts=chosen)
        return from_message(stub.EmbedTexts(request, timeout=240).embeddings)

    together = rows(texts)
    np.testing.assert_array_equal(rows(texts[::-1])[::-1], together)
    np.testing.assert_array_equal(rows(texts[2:3]), together[2:3])
    np.testing.assert_allclose(np.linalg.norm(together.astype(np.float32), axis=1), 1, atol=2e-3)


def test_presence_is_what_the_shared_module_makes_of_the_regions(stub: Stub) -> None:
    data, words = [photo(1), b"", photo(2)], ["red", "green", "striped"]
    encoder = stub.GetEncoder(concepts_pb2.GetEncoderRequest(name=ENCODER), timeout=60).encoder
    mu = from_message(encoder.reference_mean)
    assert mu.shape == (encoder.embedding_dim,)
    tau = np.linspace(-0.1, 0.1, encoder.embedding_dim, dtype=np.float32)
    request = concepts_pb2.ScorePresenceRequest(
        encoder=ENCODER, items=inputs(data), concepts=words, text_mean=to_message(tau)
    )
    scored = stub.ScorePresence(request, timeout=240).results
    rows = [from_message(one.regions.embeddings) for one in regions(stub, data).results[::2]]
    request_texts = concepts_pb2.EmbedTextsRequest(encoder=ENCODER, texts=words)
    texts = from_message(stub.EmbedTexts(request_texts, timeout=60).embeddings)
    offsets = np.cumsum([0, *map(len, rows)])
    expected = presence(np.concatenate(rows), offsets, texts, mu, tau)
    assert scored[1].error.code == 3
    for one, values in zip((scored[0], scored[2]), expected.values, strict=True):
        np.testing.assert_allclose(from_message(one.presence.scores), values, atol=5e-3)
        best = from_message(one.presence.regions)
        assert ((best >= 0) & (best < len(rows[0]))).all()
        assert from_message(one.presence.map).shape == tuple(encoder.region_map_shape)


def test_the_default_means_are_the_reference_and_the_corpus(stub: Stub) -> None:
    items = inputs([photo(1)])
    bare = concepts_pb2.ScorePresenceRequest(encoder=ENCODER, items=items, concepts=["red", "net"])
    encoder = stub.GetEncoder(concepts_pb2.GetEncoderRequest(name=ENCODER), timeout=60).encoder
    words = stub.GetConceptSet(
        concepts_pb2.GetConceptSetRequest(name="projects/default/conceptSets/everyday"), timeout=60
    ).concept_set.words
    request = concepts_pb2.EmbedTextsRequest(encoder=ENCODER, texts=words)
    corpus = from_message(stub.EmbedTexts(request, timeout=240).embeddings)
    given = concepts_pb2.ScorePresenceRequest()
    given.CopyFrom(bare)
    given.image_mean.CopyFrom(encoder.reference_mean)
    given.text_mean.CopyFrom(to_message(corpus.astype(np.float64).mean(0).astype(np.float32)))
    first, second = (
        stub.ScorePresence(one, timeout=240).results[0].presence for one in (bare, given)
    )
    assert first.scores.data == second.scores.data


def test_blobs_are_read_by_digest_in_the_callers_project_only(
    stub: Stub, concepts: tuple[Service, Path]
) -> None:
    data = photo(5)
    BlobStore(str(concepts[1] / "blobs")).put("default", data)
    by_digest = items_pb2.ImageInput(digest=digest_of(data))

    def call(encoder: str, item: items_pb2.ImageInput) -> concepts_pb2.EmbedImageResult:
        request = concepts_pb2.EmbedImagesRequest(encoder=encoder, items=[item])
        return stub.EmbedImages(request, timeout=60).results[0]

    assert call(ENCODER, by_digest).HasField("embedding")
    assert call("projects/other/encoders/effl2-minilm", by_digest).error.code == 5
    assert call(ENCODER, items_pb2.ImageInput(digest="../../etc/passwd")).error.code == 3
    assert call(ENCODER, items_pb2.ImageInput()).error.code == 3


def test_encoders_are_described(stub: Stub) -> None:
    listed = stub.ListEncoders(concepts_pb2.ListEncodersRequest(project="default"), timeout=60)
    assert ENCODER in [one.name for one in listed.encoders]
    encoder = stub.GetEncoder(concepts_pb2.GetEncoderRequest(name=ENCODER), timeout=60).encoder
    assert (encoder.embedding_dim, encoder.image_size) == (384, 260)
    for digest in (encoder.digest, encoder.preprocessing_digest, encoder.region_digest):
        assert len(digest) == 64
    assert len({encoder.digest, encoder.preprocessing_digest, encoder.region_digest}) == 3
    assert encoder.licence


def test_a_project_keeps_its_own_versioned_concept_sets(stub: Stub) -> None:
    name = "projects/default/conceptSets/rinds"

    def create(words: list[str], name: str = name) -> concepts_pb2.ConceptSet:
        made = concepts_pb2.ConceptSet(name=name, words=words)
        request = concepts_pb2.CreateConceptSetRequest(concept_set=made)
        return stub.CreateConceptSet(request, timeout=60).concept_set

    first, again = create(["netted", "smooth"]), create(["netted", "smooth"])
    assert (first.digest, list(first.words)) == (again.digest, ["netted", "smooth"])
    second = create(["netted", "smooth", "striped"])
    assert second.digest != first.digest
    read = stub.GetConceptSet(concepts_pb2.GetConceptSetRequest(name=name), timeout=60).concept_set
    assert read == second
    listed = stub.ListConceptSets(
        concepts_pb2.ListConceptSetsRequest(project="default"), timeout=60
    ).concept_sets
    assert {(one.name.rsplit("/", 1)[1], one.built_in) for one in listed} >= {
        ("everyday", True),
        ("rinds", False),
    }
    for words, where in ((["a", "A"], name), ([], name), (["ok"], name[:-5] + "everyday")):
        with pytest.raises(grpc.RpcError) as caught:
            create(words, where)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    other = concepts_pb2.GetConceptSetRequest(name="projects/other/conceptSets/rinds")
    with pytest.raises(grpc.RpcError) as caught:
        stub.GetConceptSet(other, timeout=60)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_filters_say_why_a_word_is_dropped(stub: Stub) -> None:
    words = ["red", "orange", "round", "a word that is far longer than thirty characters"]
    request = concepts_pb2.FilterConceptsRequest(
        encoder=ENCODER, words=words, class_names=["Orange", "Pink-Lady"]
    )
    reply = stub.FilterConcepts(request, timeout=60)
    assert list(reply.kept) == ["red", "round"]
    assert {one.word for one in reply.dropped} == {words[1], words[3]}
    assert all(one.reason for one in reply.dropped)
    texts = concepts_pb2.EmbedTextsRequest(encoder=ENCODER, texts=words)
    embedded = stub.EmbedTexts(texts, timeout=60)
    for spent in (reply.timings, embedded.timings):
        assert spent.compute_ms > 0
        assert spent.batch_size == len(words)
    rows = from_message(embedded.embeddings)
    np.testing.assert_array_equal(from_message(reply.embeddings), rows[[0, 2]])
    np.testing.assert_allclose(
        from_message(reply.text_mean), rows.astype(np.float64).mean(0), atol=1e-6
    )


def test_the_exported_file_gives_the_services_regions(
    stub: Stub, concepts: tuple[Service, Path]
) -> None:
    import onnxruntime

    from services.common.catalogue import ImageTextEncoder, load_catalogue
    from services.common.images import decode
    from services.torch_common.preprocess import Preprocessing

    reply = stub.ExportEncoder(concepts_pb2.ExportEncoderRequest(encoder=ENCODER), timeout=240)
    file = BlobStore(str(concepts[1] / "blobs")).get("default", reply.onnx.digest)
    assert len(file) == reply.onnx.size_bytes
    assert str(Path.cwd()).encode() not in file
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    entry = load_catalogue().get("effl2-minilm")
    assert isinstance(entry, ImageTextEncoder)
    assert entry.input is not None
    preprocessing = Preprocessing.from_spec(entry.input)
    data = [photo(n) for n in range(6)]
    for one, served in zip(data, regions(stub, data).results, strict=True):
        pixels = np.asarray(preprocessing.pixels(decode(one)))[None]
        rows, cells = session.run(["regions", "map"], {"image": pixels})
        np.testing.assert_array_equal(cells, from_message(served.regions.map))
        np.testing.assert_allclose(
            rows, from_message(served.regions.embeddings).astype(np.float32), atol=2e-3
        )


def vector(size: int, value: float = 0.0) -> tensor_pb2.Tensor:
    return to_message(np.full(size, value, np.float32))


ITEM = items_pb2.ImageInput(data=photo(0))
BAD_CALLS = {
    "no items": ("EmbedImages", concepts_pb2.EmbedImagesRequest(encoder=ENCODER)),
    "too many items": (
        "EmbedRegions",
        concepts_pb2.EmbedRegionsRequest(encoder=ENCODER, items=[ITEM] * 257),
    ),
    "bad name": ("EmbedImages", concepts_pb2.EmbedImagesRequest(encoder="x", items=[ITEM])),
    "no texts": ("EmbedTexts", concepts_pb2.EmbedTextsRequest(encoder=ENCODER)),
    "an empty text": ("EmbedTexts", concepts_pb2.EmbedTextsRequest(encoder=ENCODER, texts=["  "])),
    "a long text": (
        "EmbedTexts",
        concepts_pb2.EmbedTextsRequest(encoder=ENCODER, texts=["x" * 1001]),
    ),
    "a mean of another width": (
        "ScorePresence",
        concepts_pb2.ScorePresenceRequest(
            encoder=ENCODER, items=[ITEM], concepts=["a"], image_mean=vector(5)
        ),
    ),
    "a mean that is not a number": (
        "ScorePresence",
        concepts_pb2.ScorePresenceRequest(
            encoder=ENCODER, items=[ITEM], concepts=["a"], text_mean=vector(384, float("nan"))
        ),
    ),
    "an unprintable word": (
        "FilterConcepts",
        concepts_pb2.FilterConceptsRequest(encoder=ENCODER, words=["a\0b"], class_names=["c"]),
    ),
    "a percentile over 100": (
        "FilterConcepts",
        concepts_pb2.FilterConceptsRequest(
            encoder=ENCODER,
            words=["a", "b"],
            class_names=["c"],
            filter=concepts_pb2.ConceptFilter(pair_similarity_percentile=101),
        ),
    ),
    "a bad project": ("ListEncoders", concepts_pb2.ListEncodersRequest(project="../x")),
}


@pytest.mark.parametrize("what", BAD_CALLS)
def test_bad_calls_are_refused(stub: Stub, what: str) -> None:
    method, request = BAD_CALLS[what]
    with pytest.raises(grpc.RpcError) as caught:
        getattr(stub, method)(request, timeout=60)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("encoder", ["nothing", "efficientnet-lite0", "fruit"])
def test_what_is_no_encoder_is_not_found(stub: Stub, encoder: str) -> None:
    name = f"projects/default/encoders/{encoder}"
    with pytest.raises(grpc.RpcError) as caught:
        stub.GetEncoder(concepts_pb2.GetEncoderRequest(name=name), timeout=60)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_the_embedding_is_open_clips(stub: Stub) -> None:
    """The whole path, bytes to float16, beside open_clip's own transform and model."""
    import torch
    from torchvision import transforms

    from services.common.catalogue import ImageTextEncoder, load_catalogue
    from services.common.fetch import ensure_all
    from services.concepts.loading import load_towers
    from services.concepts.settings import ConceptsSettings

    cache, catalogue = ConceptsSettings().cache_dir, load_catalogue()
    entry = catalogue.get("effl2-minilm")
    assert isinstance(entry, ImageTextEncoder)
    paths = ensure_all(catalogue, [entry.id], cache)
    clip = load_towers(entry, catalogue, paths, cache).towers.clip
    transform = transforms.Compose(
        [
            transforms.Resize(260, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(260),
            transforms.ToTensor(),
            transforms.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    data = [photo(n, size=(500, 333)) for n in range(4)]
    batch = torch.stack([transform(Image.open(io.BytesIO(one)).convert("RGB")) for one in data])
    with torch.inference_mode():
        expected = clip.encode_image(batch, normalize=True).half().numpy()
    for one, row in zip(embed(stub, data).results, expected, strict=True):
        np.testing.assert_allclose(
            from_message(one.embedding).astype(np.float32), row.astype(np.float32), atol=1e-3
        )
