"""The language half of the teacher service over gRPC, on a tiny random model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
import pytest
import pytest_asyncio
import torch
from stillhouse.common.v1 import items_pb2, language_pb2
from stillhouse.teacher.v1 import teacher_pb2

from services.common.targets import TargetShard
from services.common.tensors import from_message, to_message
from services.common.texts import TextRecord, pack_records
from tests.teacher.language_models import (
    TEXT,
    World,
    load_tiny,
    name,
    publish,
    said,
    scored,
    world,
    write_adapter,
    write_tiny,
)

TINY = name("tiny")
SHARD = items_pb2.EXECUTION_SHARD


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("language")
    write_tiny(path / "tiny")
    write_adapter(path / "adapter", path / "tiny")
    return path


@pytest_asyncio.fixture
async def here(folder: Path) -> AsyncIterator[World]:
    async with world(folder) as running:
        yield running


async def _score(here: World, items: list[teacher_pb2.ScoreItem], model: str = TINY, **more):  # type: ignore[no-untyped-def]
    request = teacher_pb2.ScoreRequest(model=model, items=items, per_token=True, **more)
    return await here.stub.Score(request, timeout=60)


async def _generate(here: World, prompts: list[str], model: str = TINY, **sampling):  # type: ignore[no-untyped-def]
    request = teacher_pb2.GenerateRequest(
        model=model,
        items=[teacher_pb2.GenerateItem(prompt=said(one)) for one in prompts],
        sampling=language_pb2.Sampling(**sampling),
        stream_text=True,
    )
    return [event async for event in here.stub.Generate(request, timeout=60)]


async def test_scores_are_those_of_transformers(here: World, folder: Path) -> None:
    tiny = load_tiny(folder / "tiny")
    pairs = [
        ("the quick", " brown fox"),
        ("a", " cat sat on a mat near the door"),
        ("the lazy ", "dog"),
    ]
    reply = await _score(here, [scored(p, a, end_of_text=True) for p, a in pairs])
    assert reply.model_digest == tiny.digest
    for (prompt, answer), result in zip(pairs, reply.results, strict=True):
        before, after = tiny.encoder.ids(prompt), [*tiny.encoder.ids(answer), 1]
        assert from_message(result.score.token_ids).tolist() == after
        ids = torch.tensor([[*before, *after]])
        logits = tiny.model(ids).logits[0, len(before) - 1 : -1, : tiny.vocab_size]
        expected = logits.log_softmax(-1).gather(1, ids[0, len(before) :, None])[:, 0]
        got = from_message(result.score.token_log_probabilities)
        np.testing.assert_allclose(got, expected.detach().numpy(), atol=1e-4)
        assert result.score.log_probability == pytest.approx(float(expected.sum()), abs=1e-3)


async def test_every_item_gets_its_own_outcome(here: World) -> None:
    bad_ids = to_message(np.array([999], np.int32))
    items = [
        scored("the", " dog", item_id="good"),
        scored("the " * 200, "dog"),
        scored("the", ""),
        teacher_pb2.ScoreItem(prompt=said("the")),
        teacher_pb2.ScoreItem(prompt=said("the"), token_ids=bad_ids),
        teacher_pb2.ScoreItem(prompt=said("the"), token_ids=to_message(np.array([1.0]))),
        teacher_pb2.ScoreItem(prompt=language_pb2.Prompt(chat=language_pb2.Chat()), text="x"),
        scored("the", "x", item_id="x" * 300),
        scored("the", "x\ufffd\u0000"),
        teacher_pb2.ScoreItem(text="alone"),
    ]
    reply = await _score(here, items)
    codes = [result.error.code for result in reply.results]
    assert codes == [0, 3, 3, 3, 3, 3, 3, 3, 0, 0]
    assert "context has 128" in reply.results[1].error.message
    assert reply.results[0].item_id == "good"
    alone = reply.results[9].score  # nothing stands before its first token
    assert alone.token_count == len(load_tiny(here.folder / "tiny").encoder.ids("alone")) - 1


async def test_concurrent_callers_share_batches_and_shards_do_not(here: World) -> None:
    texts = [TEXT[n : n + 20 + n] for n in range(24)]
    alone = await _score(here, [scored("the", t) for t in texts], execution=SHARD)
    single = [_score(here, [scored("the", t)]) for t in texts]
    crowded, *online = await asyncio.gather(
        _score(here, [scored("the", t) for t in texts], execution=SHARD), *single
    )
    assert max(reply.timings.batch_size for reply in online) > 1
    for mine, theirs, other in zip(alone.results, crowded.results, online, strict=True):
        assert mine == theirs
        assert other.results[0].score.log_probability == pytest.approx(
            mine.score.log_probability, abs=1e-3
        )


async def test_a_chat_goes_through_the_template(here: World) -> None:
    chat = language_pb2.Chat(messages=[language_pb2.ChatMessage(role="user", content="the fox")])
    item = teacher_pb2.ScoreItem(prompt=language_pb2.Prompt(chat=chat), text="dog")
    plain = scored("<user>the fox\n<assistant>", "dog")
    reply = await _score(here, [item, plain])
    assert reply.results[0].score == reply.results[1].score


async def test_targets_of_a_text_shard(here: World, folder: Path) -> None:
    records = [
        TextRecord("a", text=TEXT * 2),
        TextRecord("b", prompt="the fox", answer=" jumps"),
        TextRecord("c", prompt="the", answer=TEXT * 9),
    ]
    digest = here.blobs.put("default", pack_records(records))
    shard = teacher_pb2.TextShard(records=items_pb2.BlobRef(digest=digest), sequence_length=48)
    request = teacher_pb2.SampleTargetsRequest(model=TINY, text_shard=shard, seed=4)
    reply = await here.stub.SampleTargets(request, timeout=60)
    again = await here.stub.SampleTargets(request, timeout=60)
    assert reply.blob == again.blob
    found = TargetShard.from_bytes(here.blobs.get("default", reply.blob.digest))
    assert (len(found), found.token_count) == (reply.sequence_count, reply.token_count)
    spent = reply.timings
    assert min(spent.preprocess_ms, spent.compute_ms, spent.encode_ms, spent.queue_ms) > 0
    assert spent.batch_size >= 1
    assert len(reply.skipped) == 1
    assert reply.skipped[0].startswith("record 2:")
    assert reply.bytes_per_token == pytest.approx(found.bytes_per_token)
    draws = [
        np.bincount(found.sequence(n).row, found.sequence(n).weight) for n in range(len(found))
    ]
    np.testing.assert_allclose(np.concatenate(draws), 1, atol=1e-5)
    assert not any(found.records)
    request.kind = teacher_pb2.TARGET_KIND_TOP_K
    reply = await here.stub.SampleTargets(request, timeout=60)
    top = TargetShard.from_bytes(here.blobs.get("default", reply.blob.digest))
    assert [name.hex() for name in top.records if name] == [records[1].digest]
    assert top.records[0].hex() == records[1].digest


async def test_targets_of_sequences_do_not_depend_on_their_neighbours(here: World) -> None:
    rng = np.random.default_rng(0)
    sequences = [rng.integers(2, 290, n).astype(np.int32) for n in (30, 12, 50)]

    async def targets(chosen: list[int], **more):  # type: ignore[no-untyped-def]
        tokens = np.concatenate([sequences[n] for n in chosen])
        offsets = np.cumsum([0] + [len(sequences[n]) for n in chosen])
        mask = np.ones(len(tokens), np.uint8)
        mask[offsets[:-1]] = 0
        given = teacher_pb2.TokenSequences(
            token_ids=to_message(tokens), offsets=to_message(offsets), is_target=to_message(mask)
        )
        request = teacher_pb2.SampleTargetsRequest(model=TINY, sequences=given, **more)
        reply = await here.stub.SampleTargets(request, timeout=60)
        return TargetShard.from_bytes(reply.inline)

    one, three = await targets([1]), await targets([0, 1, 2])
    mine, theirs = one.sequence(0), three.sequence(1)
    assert mine.digest == theirs.digest
    np.testing.assert_array_equal(mine.ids, theirs.ids)
    top = (await targets([1], kind=teacher_pb2.TARGET_KIND_TOP_K, top_k=3)).sequence(0)
    assert len(top.ids) == 3 * 11
    assert (top.tail > 0).all()
    for bad in ({"top_k": 3}, {"temperature": -1.0}, {"bytes_per_token": float("nan")}):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await targets([1], **bad)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_written_text_is_streamed_and_repeatable(here: World, folder: Path) -> None:
    tiny = load_tiny(folder / "tiny")
    prompts = ["the quick brown", "a", "the lazy dog and the small cat"]
    events = await _generate(here, prompts, temperature=1.0, seed=7, max_tokens=20)
    done = {e.index: e.generation for e in events if e.WhichOneof("event") == "generation"}
    assert sorted(done) == [0, 1, 2]
    for at, prompt in enumerate(prompts):
        streamed = "".join(e.text for e in events if e.index == at)
        assert streamed == done[at].text
        made = from_message(done[at].token_ids)
        ids = torch.tensor([[*tiny.encoder.ids(prompt), *made]])
        logits = tiny.model(ids).logits[0, -len(made) - 1 : -1, : tiny.vocab_size]
        likely = logits.log_softmax(-1).gather(1, ids[0, -len(made) :, None]).sum()
        assert done[at].log_probability == pytest.approx(float(likely), abs=1e-2)
        spent = done[at].timings
        assert spent.compute_ms > 0
        assert (spent.preprocess_ms > 0, spent.batch_size) == (True, 3)
    again = await _generate(here, prompts, temperature=1.0, seed=7, max_tokens=20)
    assert [e for e in again if e.text] == [e for e in events if e.text]
    alone = await _generate(here, prompts[1:2], temperature=1.0, seed=7, max_tokens=20)
    assert alone[-1].generation.text == done[1].text
    other = await _generate(here, prompts[1:2], temperature=1.0, seed=8, max_tokens=20)
    assert other[-1].generation.text != done[1].text


async def test_a_caller_that_leaves_stops_the_writing(here: World) -> None:
    request = teacher_pb2.GenerateRequest(
        model=TINY,
        items=[teacher_pb2.GenerateItem(prompt=said("the"))] * 4,
        sampling=language_pb2.Sampling(temperature=1.0, max_tokens=100),
        stream_text=True,
    )
    call = here.stub.Generate(request, timeout=60)
    await call.read()
    call.cancel()
    reply = await _score(here, [scored("the", " dog")])  # the models' thread is free again
    assert reply.results[0].HasField("score")


async def test_adapters_share_their_base(here: World, folder: Path) -> None:
    base = await here.stub.GetModel(teacher_pb2.GetModelRequest(name=TINY), timeout=60)
    publish(here.blobs, folder / "adapter", "tuned", base="tiny", base_digest=base.model.digest)
    items = [scored("the", " dog")]
    before = (await _score(here, items)).results[0].score.log_probability
    tuned = await _score(here, items, name("tuned"))
    assert abs(tuned.results[0].score.log_probability - before) > 0.1
    assert (await _score(here, items)).results[0].score.log_probability == before
    spec = (await here.stub.GetModel(teacher_pb2.GetModelRequest(name=name("tuned")))).model
    assert spec.language_model.base == "tiny"
    assert spec.digest == tuned.model_digest != base.model.digest
    extra = spec.language_model.parameter_count - base.model.language_model.parameter_count
    assert extra == 2 * (2 * (32 + 32) + 2 * (32 + 16))  # layers, rank, inputs and outputs
    publish(here.blobs, folder / "adapter", "stale", base="tiny", base_digest="1" * 64)
    publish(here.blobs, folder / "adapter", "lost", base="tinny")
    for model_id, code, hint in (
        ("stale", grpc.StatusCode.FAILED_PRECONDITION, "train it again"),
        ("lost", grpc.StatusCode.NOT_FOUND, "did you mean tiny"),
        ("tuner", grpc.StatusCode.NOT_FOUND, "did you mean tuned"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _score(here, items, name(model_id))
        assert caught.value.code() == code
        assert hint in str(caught.value.details())


async def test_a_model_that_was_published_again_is_noticed(here: World, tmp_path: Path) -> None:
    items, digests = [scored("the", " dog")], []
    for seed in (1, 2):
        publish(here.blobs, write_tiny(tmp_path / str(seed), seed=seed), "mine")
        reply = await _score(here, items, name("mine"))
        digests.append((reply.model_digest, reply.results[0].score.log_probability))
    assert digests[0] != digests[1]


async def test_listing_loads_nothing(here: World, folder: Path) -> None:
    publish(here.blobs, folder / "adapter", "tuned", base="tiny")
    here.blobs.put_ref(
        "default",
        "models/my-head",
        json.dumps(
            {"kind": "linear_head", "backbone": "efficientnet-lite0", "classes": ["a"]}
        ).encode(),
    )
    reply = await here.stub.ListModels(teacher_pb2.ListModelsRequest(project="default"))
    found = {model.name.rsplit("/", 1)[1]: model for model in reply.models}
    assert list(found) == sorted(found)
    assert found["tuned"].language_model.base == "tiny"
    assert found["far"].language_model.backend == "openai"
    assert found["my-head"].kind == teacher_pb2.MODEL_KIND_IMAGE_CLASSIFIER
    assert not any(model.digest for model in reply.models)


async def test_methods_of_the_other_kind_are_refused(here: World, folder: Path) -> None:
    publish(here.blobs, folder / "adapter", "tuned", base="tiny")
    image = items_pb2.ImageInput(data=b"x")
    for model in (TINY, name("tuned")):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await here.stub.Classify(teacher_pb2.ClassifyRequest(model=model, items=[image]))
        assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    here.blobs.put_ref("default", "models/my-head", b'{"kind": "linear_head"}')
    for model in (name("efficientnet-lite0"), name("my-head")):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _score(here, [scored("the", "dog")], model)
        assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
