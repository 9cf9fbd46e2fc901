"""SmolLM2 in the service's own code: bytes a token, text, memory of adapters; and another server
over the same weights."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import grpc.aio
import numpy as np
import pytest
from stillhouse.common.v1 import items_pb2, language_pb2
from stillhouse.teacher.v1 import teacher_pb2

from services.common.catalogue import load_catalogue
from services.common.fetch import ensure
from services.common.targets import TargetShard
from services.common.texts import TextRecord, pack_records
from services.teacher.settings import TeacherSettings
from tests.support import free_port
from tests.teacher.language_models import World, name, said, world

SMOL = name("smollm2-135m")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("real")


def _ask(text: str) -> language_pb2.Prompt:
    message = language_pb2.ChatMessage(role="user", content=text)
    return language_pb2.Prompt(chat=language_pb2.Chat(messages=[message]))


async def _targets(here: World) -> TargetShard:
    """Sampled targets of Python's own manual."""
    text = topics["strings"] + topics["typesseq"]
    records = [TextRecord("a", text=text[:3000])]
    digest = here.blobs.put("default", pack_records(records))
    shard = teacher_pb2.TextShard(records=items_pb2.BlobRef(digest=digest), sequence_length=256)
    request = teacher_pb2.SampleTargetsRequest(model=SMOL, text_shard=shard)
    reply = await here.stub.SampleTargets(request, timeout=200)
    assert 30 < reply.bytes_per_token <= 40
    assert reply.draws_per_token > 15
    return TargetShard.from_bytes(here.blobs.get("default", reply.blob.digest))


async def test_it_answers_scores_and_gives_targets_within_their_bytes(folder: Path) -> None:
    async with world(folder, cache_dir=TeacherSettings().cache_dir) as here:
        request = teacher_pb2.GenerateRequest(
            model=SMOL,
            items=[teacher_pb2.GenerateItem(prompt=_ask("What is the capital of France?"))],
            sampling=language_pb2.Sampling(max_tokens=12),
        )
        (event,) = [one async for one in here.stub.Generate(request, timeout=200)]
        assert event.generation.text == "The capital of France is Paris."
        assert event.generation.finish_reason == teacher_pb2.FINISH_REASON_STOP
        items = [
            teacher_pb2.ScoreItem(prompt=said("The opposite of hot is"), text=answer)
            for answer in (" cold", " green")
        ]
        reply = await here.stub.Score(
            teacher_pb2.ScoreRequest(model=SMOL, items=items), timeout=200
        )
        cold, green = (one.score.log_probability for one in reply.results)
        assert cold > green + 3
        shard = await _targets(here)
        first = shard.sequence(0)
        likely = np.zeros(len(first.tail))
        own = first.tokens[1:][first.row] == first.ids
        likely[first.row[own]] = first.weight[own]
        assert 0.2 < likely.mean() < 0.9  # the share of draws that are the text's own next token


@pytest.fixture(scope="module")
def other_server(folder: Path) -> Iterator[str]:
    """`transformers serve` over the same weights, in a process of its own."""
    if importlib.util.find_spec("fastapi") is None:
        pytest.skip("transformers serve needs fastapi and openai")
    weights = ensure(load_catalogue().get("smollm2-135m"), TeacherSettings().cache_dir)
    port = free_port()
    code = (
        "import services.torch_common, sys; from transformers.cli.transformers import main; "
        f"sys.argv = ['transformers', 'serve', {str(weights)!r}, '--port', '{port}', "
        "'--device', 'cpu', '--dtype', 'float32']; main()"
    )
    with (folder / "serve.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=log,
            stderr=log,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )
    try:
        _wait(port, process, folder / "serve.log")
        yield f"http://127.0.0.1:{port}/v1|{weights}"
    finally:
        process.terminate()
        process.wait(30)


def _wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    import httpx2

    until_s = time.monotonic() + 200
    while time.monotonic() < until_s and process.poll() is None:
        try:
            if httpx2.get(f"http://127.0.0.1:{port}/health", timeout=2).status_code == 200:
                return
        except httpx2.TransportError:
            time.sleep(0.5)
    raise RuntimeError(log.read_text()[-2000:])


@pytest.mark.slow
async def test_an_openai_server_writes_the_same_answer(other_server: str, tmp_path: Path) -> None:
    url, remote = other_server.split("|")
    async with world(tmp_path, url=url, remote=remote) as here:
        request = teacher_pb2.GenerateRequest(
            model=name("far"),
            items=[
                teacher_pb2.GenerateItem(prompt=_ask("What is the capital of France?")),
                teacher_pb2.GenerateItem(prompt=said("The opposite of hot is")),
            ],
            sampling=language_pb2.Sampling(max_tokens=12),
            stream_text=True,
        )
        events = [one async for one in here.stub.Generate(request, timeout=200)]
        done = {e.index: e.generation for e in events if e.HasField("generation")}
        assert done[0].text == "The capital of France is Paris."
        assert done[1].text.startswith(" cold")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await here.stub.Score(
                teacher_pb2.ScoreRequest(
                    model=name("far"),
                    items=[teacher_pb2.ScoreItem(prompt=said("a"), text=" b")],
                ),
                timeout=60,
            )
        assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
        assert "echo" in str(caught.value.details())
