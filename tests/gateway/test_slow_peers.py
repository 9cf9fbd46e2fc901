"""Peers that are slow on purpose hold up nobody else, and nobody unknown fills the memory."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from stillhouse.gateway.v1 import datasets_pb2 as pb

from services.common.outbound import Addresses, Answer
from services.gateway.datasets.readers import Reading, UriPolicy
from services.gateway.projects.rows import DeliveryRow, ProjectRow
from services.gateway.projects.webhooks import Deliveries
from services.gateway.store import Store
from tests.common.test_outbound import talking
from tests.gateway.access_world import make_key
from tests.gateway.edge_world import edge_world
from tests.gateway.test_access import asking
from tests.gateway.test_datasets_servicer import running
from tests.support import photo

SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef01234567").decode()


async def until(condition: Callable[[], bool], *, timeout_s: float = 30.0) -> None:
    until_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until_s
        await asyncio.sleep(0.02)


class Hooks(Addresses):
    """Answers at once, but for the host `slow`, which answers when it is let go."""

    def __init__(self) -> None:
        object.__setattr__(self, "allowed", ())
        object.__setattr__(self, "let_go", threading.Event())
        object.__setattr__(self, "asked", Counter())

    def post(self, url: str, *_: Any, **__: Any) -> Answer:
        host = url.split("/")[2]
        self.asked[host] += 1  # type: ignore[attr-defined]
        if host == "slow":
            self.let_go.wait(60)  # type: ignore[attr-defined]
        return Answer(204, b"")


async def test_the_slow_webhook_of_one_project_holds_up_no_other(store: Store) -> None:
    with store.write() as session:
        for project, count in (("slow", 30), ("quick", 2)):
            hook = {"uri": f"https://{project}/", "secret": SECRET}
            session.add(ProjectRow(project=project, webhooks_json=json.dumps([hook])))
            for at in range(count):
                made = f"{project}-{at}"
                one = DeliveryRow(project=project, message_id=made, uri=hook["uri"], body="{}")
                session.add(one)
                session.flush()
    hooks = Hooks()
    asked: Counter[str] = hooks.asked  # type: ignore[attr-defined]
    sending = Deliveries(store, hooks, every_s=0.02)
    sending.start()
    await until(lambda: asked["quick"] == 2)
    assert 0 < asked["slow"] <= 3
    hooks.let_go.set()  # type: ignore[attr-defined]
    await until(lambda: asked["slow"] == 30)
    await sending.stop()


async def test_a_webhook_that_cannot_be_sent_is_given_up(store: Store) -> None:
    uri = "https://example.org/h\u00f6k"  # written before such were refused
    with store.write() as session:
        hook = {"uri": uri, "secret": SECRET}
        session.add(ProjectRow(project="p", webhooks_json=json.dumps([hook])))
        session.add(DeliveryRow(project="p", message_id="m", uri=uri, body="{}"))
    sending = Deliveries(store, Addresses(), every_s=0.02, pauses_s=(0.01,))
    sending.start()

    def gone() -> bool:
        with store.read() as session:
            return session.query(DeliveryRow).count() == 0

    await until(gone)
    await sending.stop()


@contextmanager
def crawling() -> Iterator[str]:
    """A download that never ends; yields its URL."""

    def crawl(peer: Any, done: threading.Event) -> None:
        peer.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 999999\r\n\r\n")
        while not done.wait(0.05):
            peer.sendall(b"P")

    with talking(crawl) as url:
        yield f"{url}x.zip"


async def test_the_slow_sources_of_one_project_hold_up_no_other(
    store: Store, reading: Reading, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    for at in range(4):
        (folder / "ab"[at % 2]).mkdir(parents=True, exist_ok=True)
        (folder / "ab"[at % 2] / f"{at}.jpg").write_bytes(photo(at))
    open_to_us = replace(reading, policy=UriPolicy(True, addresses=Addresses(("127.0.0.1",))))
    with ExitStack() as stack:
        urls = [stack.enter_context(crawling()) for _ in range(3)]
        async with running(store, open_to_us) as gateway:
            for at, url in enumerate(urls):
                request = pb.CreateDatasetRequest(project="slow", dataset_id=f"d{at}", uri=url)
                await gateway.stub.CreateDataset(request)
            request = pb.CreateDatasetRequest(project="quick", dataset_id="d", uri=str(folder))
            await gateway.stub.CreateDataset(request)
            async with asyncio.timeout(60):
                found = await gateway.ready("projects/quick/datasets/d")
            assert found.state == pb.DATASET_STATE_READY
            asked = pb.GetDatasetRequest(name="projects/slow/datasets/d0")
            slow = (await gateway.stub.GetDataset(asked)).dataset
            assert slow.state == pb.DATASET_STATE_CREATING
            async with asyncio.timeout(30):
                await gateway.runner.stop()


async def test_a_large_body_of_somebody_unknown_is_not_read(tmp_path: Path) -> None:
    async with asking(tmp_path) as world:
        reader, writer = await asyncio.open_connection("127.0.0.1", world.edge.port)
        head = "POST /v1/projects HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {16 << 20}\r\n\r\n".encode() + b" " * (1 << 20))
        async with asyncio.timeout(30):  # most of it has not been sent
            answer = await reader.readline()
        writer.close()
        assert answer.startswith(b"HTTP/1.1 401 ")
        key = make_key(world.gateway.store, "default", 1)
        good = await world.http.post(
            "/v1/projects",
            content=b" " * (1 << 20) + b"{}",
            headers={"content-type": "application/json", "Authorization": f"Bearer {key}"},
        )
        assert good.status_code == 403


async def test_a_large_body_is_read_where_nobody_is_asked(tmp_path: Path) -> None:
    async with edge_world(tmp_path) as world:
        body = b" " * (1 << 20) + b'{"projectId": "large"}'
        made = await world.http.post(
            "/v1/projects", content=body, headers={"content-type": "application/json"}
        )
        assert made.is_success
