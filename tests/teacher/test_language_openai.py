"""Models in OpenAI-compatible servers, behind the same service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import numpy as np
import pytest
import pytest_asyncio
from stillhouse.common.v1 import language_pb2
from stillhouse.teacher.v1 import teacher_pb2

from services.common.tensors import to_message
from tests.teacher.language_models import World, load_tiny, name, said, scored, world, write_tiny
from tests.teacher.openai_server import KEY, OpenAIServerApp, openai_server

FAR = name("far")
Pair = tuple[World, OpenAIServerApp]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("openai")
    write_tiny(path / "tiny")
    return path


@pytest_asyncio.fixture
async def both(folder: Path) -> AsyncIterator[Pair]:
    async with (
        openai_server(load_tiny(folder / "tiny")) as (server, url),
        world(folder, url=url, openai_api_key=KEY) as here,
    ):
        yield here, server


async def _generate(here: World, items: list[teacher_pb2.GenerateItem], **more):  # type: ignore[no-untyped-def]
    request = teacher_pb2.GenerateRequest(model=FAR, items=items, **more)
    return [event async for event in here.stub.Generate(request, timeout=30)]


async def test_scores_equal_those_of_the_same_model_here(both: Pair) -> None:
    here, _ = both
    ids = np.array([5, 80, 33, 120], np.int32)
    prompt = language_pb2.Prompt(token_ids=to_message(ids))
    items = [
        scored("the quick", " brown fox", item_id="a"),
        teacher_pb2.ScoreItem(prompt=prompt, token_ids=to_message(ids[:3])),
        teacher_pb2.ScoreItem(text=" alone on a mat"),
    ]
    far = await here.stub.Score(
        teacher_pb2.ScoreRequest(model=FAR, items=items, per_token=True), timeout=30
    )
    near = await here.stub.Score(
        teacher_pb2.ScoreRequest(model=name("tiny"), items=items, per_token=True), timeout=30
    )
    for one, other in zip(far.results, near.results, strict=True):
        assert one.score.token_count == other.score.token_count > 0
        assert one.score.log_probability == pytest.approx(other.score.log_probability, abs=1e-3)
    assert far.results[0].item_id == "a"


async def test_what_the_server_cannot_score_fails_its_item_alone(both: Pair) -> None:
    here, _ = both
    chat = language_pb2.Chat(messages=[language_pb2.ChatMessage(role="user", content="hi")])
    items = [
        scored("t", "he quick"),  # meets inside a token
        teacher_pb2.ScoreItem(prompt=language_pb2.Prompt(chat=chat), text="x"),
        scored("the", "", item_id="empty"),
        scored("the quick", " brown"),
    ]
    reply = await here.stub.Score(teacher_pb2.ScoreRequest(model=FAR, items=items), timeout=30)
    assert [one.error.code for one in reply.results] == [3, 3, 3, 0]
    assert "inside a token" in reply.results[0].error.message


@pytest.mark.parametrize("stream", [True, False])
async def test_text_is_written_there(both: Pair, stream: bool) -> None:
    here, server = both
    chat = language_pb2.Chat(messages=[language_pb2.ChatMessage(role="user", content="the fox")])
    items = [
        teacher_pb2.GenerateItem(prompt=said("the quick"), item_id="text", seed=3),
        teacher_pb2.GenerateItem(prompt=language_pb2.Prompt(chat=chat)),
        teacher_pb2.GenerateItem(prompt=said("")),
    ]
    sampling = language_pb2.Sampling(max_tokens=6, temperature=0.5, top_p=0.9, stop=["#"], seed=4)
    events = await _generate(here, items, sampling=sampling, stream_text=stream)
    done = {e.index: e for e in events if e.WhichOneof("event") != "text"}
    assert [done[n].WhichOneof("event") for n in range(3)] == ["generation", "generation", "error"]
    assert done[0].item_id == "text"
    if stream:
        assert "".join(e.text for e in events if e.index == 0) == done[0].generation.text
    assert done[0].generation.finish_reason == (1 if stream else 2)
    assert done[0].generation.text
    sent = next(body for body in server.seen if "prompt" in body)
    assert (sent["seed"], sent["stop"], sent["top_p"], sent["max_tokens"]) == (7, ["#"], 0.9, 6)


async def test_a_caller_that_leaves_ends_the_servers_work(both: Pair) -> None:
    here, server = both
    server.slow_s = 0.2
    items = [teacher_pb2.GenerateItem(prompt=said("the"))]
    sampling = language_pb2.Sampling(max_tokens=60)
    request = teacher_pb2.GenerateRequest(
        model=FAR, items=items, sampling=sampling, stream_text=True
    )
    call = here.stub.Generate(request, timeout=30)
    await call.read()
    call.cancel()
    for _ in range(100):
        if server.aborted:
            break
        await asyncio.sleep(0.02)
    assert server.aborted == 1


@pytest.mark.parametrize(
    ("status", "code", "hint"),
    [
        (401, grpc.StatusCode.FAILED_PRECONDITION, "TEACHER_OPENAI_API_KEY"),
        (404, grpc.StatusCode.NOT_FOUND, "refused with 404"),
        (429, grpc.StatusCode.RESOURCE_EXHAUSTED, "refused with 429"),
        (500, grpc.StatusCode.UNAVAILABLE, "500"),
    ],
)
async def test_failures_keep_their_meaning(
    both: Pair, status: int, code: grpc.StatusCode, hint: str
) -> None:
    here, server = both
    server.broken = status
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await here.stub.Score(
            teacher_pb2.ScoreRequest(model=FAR, items=[scored("the", " dog")]), timeout=30
        )
    assert caught.value.code() == code
    assert hint in str(caught.value.details())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _generate(here, [teacher_pb2.GenerateItem(prompt=said("the"))])
    assert caught.value.code() == code


async def test_targets_need_a_model_here_and_a_server_that_is_away_is_unavailable(
    folder: Path,
) -> None:
    async with world(folder, url="http://127.0.0.1:9/v1") as here:
        described = await here.stub.GetModel(teacher_pb2.GetModelRequest(name=FAR), timeout=30)
        spec = described.model.language_model
        assert (spec.backend, spec.context_length) == ("openai", 512)
        assert list(spec.methods) == ["Score", "Generate"]
        for call, request, code in (
            (
                here.stub.SampleTargets,
                teacher_pb2.SampleTargetsRequest(model=FAR),
                grpc.StatusCode.FAILED_PRECONDITION,
            ),
            (
                here.stub.Score,
                teacher_pb2.ScoreRequest(model=FAR, items=[scored("the", " dog")]),
                grpc.StatusCode.UNAVAILABLE,
            ),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(request, timeout=30)
            assert caught.value.code() == code
