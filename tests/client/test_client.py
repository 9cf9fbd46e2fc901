"""The clients: retries, reconnecting watches, batches within limits, the blocking twin."""

from __future__ import annotations

import inspect
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from google.protobuf import duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from stillhouse.common.v1 import info_pb2, items_pb2
from stillhouse.gateway.v1 import jobs_pb2, models_pb2, students_pb2
from stillhouse_client import AsyncClient, Client, images, names, sync, upload
from stillhouse_client.errors import (
    DeadlinePassed,
    InvalidRequest,
    NobodyThere,
    NotFound,
    Overloaded,
    from_status,
)

from tests.client.fake_gateway import BATCH, World
from tests.support import photo


def test_it_can_share_a_process_with_other_clients_of_inference_servers() -> None:
    code = (
        "import stillhouse_client, stillhouse_client.cli\n"
        "from google.protobuf.descriptor_pool import Default\n"
        "Default().FindMessageTypeByName('inference.ServerLiveRequest')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "KeyError" in done.stderr  # two definitions of a message end a process


async def test_calls_are_repeated_while_the_server_is_away(gateway: World) -> None:
    async with AsyncClient(gateway.address) as client:
        await client.datasets.create("fruit", uri="builtin:fruit-fine")
        gateway.away = 2
        assert (await client.datasets.get("fruit")).item_count == 10
        assert gateway.away == 0


async def test_nobody_there_is_an_error_after_the_retries() -> None:
    async with AsyncClient("127.0.0.1:1", retry_s=0.3) as client:
        with pytest.raises(NobodyThere, match=r"127\.0\.0\.1:1"):
            await client.students.list()


async def test_errors_carry_the_resource(gateway: World) -> None:
    async with AsyncClient(gateway.address) as client:
        with pytest.raises(NotFound) as raised:
            await client.students.get("nobody")
    assert raised.value.fields["resource"] == "projects/default/students/nobody"


async def test_a_broken_watch_goes_on_after_the_last_event(gateway: World) -> None:
    async with AsyncClient(gateway.address) as client:
        events = [event async for event in client.jobs.watch("job-1")]
    assert [event.resume_token for event in events] == ["5", "10"]
    tokens = [
        call.resume_token
        for call in gateway.calls
        if isinstance(call, jobs_pb2.WatchDistillationJobRequest)
    ]
    assert tokens == ["", "5"]


@pytest.mark.parametrize(("quiet_s", "kept"), [(600, True), (1, False)])
async def test_a_watch_ends_where_nobody_answers_and_not_where_nothing_happens(
    gateway: World, monkeypatch: pytest.MonkeyPatch, quiet_s: float, kept: bool
) -> None:
    now_s = [1000.0]
    clock = SimpleNamespace(monotonic=lambda: now_s[0])
    monkeypatch.setattr("stillhouse_client.jobs.time", clock)
    async with AsyncClient(gateway.address) as client:
        events, left = client.jobs._events, [quiet_s] * 3

        async def breaking(name: str, token: str) -> AsyncIterator[Any]:
            if left:
                now_s[0] += left.pop()
                raise DeadlinePassed("the stream has ended")
            async for event in events(name, token):
                yield event

        monkeypatch.setattr(client.jobs, "_events", breaking)
        if kept:
            assert [one async for one in client.jobs.watch("job-1", give_up_s=0.5)]
        else:
            with pytest.raises(DeadlinePassed):
                [one async for one in client.jobs.watch("job-1", give_up_s=0.5)]


async def test_predict_keeps_to_the_servers_limits(gateway: World) -> None:
    items = [items_pb2.ImageInput(item_id=str(i), data=photo(i)) for i in range(BATCH * 2 + 1)]
    async with AsyncClient(gateway.address) as client:
        found = [
            result.item_id
            async for response in client.students.predict("fruit", items)
            for result in response.results
        ]
    assert found == [item.item_id for item in items]
    sizes = [
        len(call.items)
        for call in gateway.calls
        if isinstance(call, students_pb2.PredictImagesRequest)
    ]
    assert sizes == [BATCH, BATCH, 1]


async def test_an_image_that_no_message_holds_fails_alone(gateway: World) -> None:
    items = [items_pb2.ImageInput(item_id=str(i), data=photo(i)) for i in range(3)]
    items[1].data = bytes(9 << 20)
    async with AsyncClient(gateway.address) as client:
        found = [
            result
            async for response in client.students.predict("fruit", items)
            for result in response.results
        ]
    assert [one.item_id for one in found] == ["0", "1", "2"]
    assert [one.WhichOneof("outcome") for one in found] == ["prediction", "error", "prediction"]
    assert "a message holds 8,388,608" in found[1].error.message


async def test_embedding_keeps_to_the_servers_limits(gateway: World) -> None:
    items = [items_pb2.ImageInput(item_id=str(i), digest="a" * 64) for i in range(BATCH + 1)]
    items.insert(2, items_pb2.ImageInput(item_id="large", data=bytes(9 << 20)))
    async with AsyncClient(gateway.address) as client:
        found = await client.models.embed_images("effl2-minilm", items)
    assert [one.item_id for one in found] == [item.item_id for item in items]
    assert [one.item_id for one in found if one.HasField("error")] == ["large"]
    sizes = [
        len(call.items)
        for call in gateway.calls
        if isinstance(call, models_pb2.EmbedProjectImagesRequest)
    ]
    assert sizes == [2, BATCH - 1]


def test_batches_keep_to_message_bytes() -> None:
    items = [items_pb2.ImageInput(data=bytes(300_000)) for _ in range(5)]
    limits = info_pb2.Limits(max_batch_items=100, max_message_bytes=1 << 20)
    assert [len(b) for b in images.batches(iter(items), limits)] == [1, 1, 1, 1, 1]
    limits.max_message_bytes = 4 << 20
    assert [len(b) for b in images.batches(iter(items), limits)] == [5]


def test_a_refusal_says_when_to_come_again() -> None:
    status = status_pb2.Status(code=code_pb2.RESOURCE_EXHAUSTED, message="full")
    assert isinstance(found := from_status(status), Overloaded)
    assert found.retry_after_s == 0
    info = error_details_pb2.RetryInfo(
        retry_delay=duration_pb2.Duration(seconds=2, nanos=5 * 10**8)
    )
    status.details.add().Pack(info)
    assert isinstance(found := from_status(status), Overloaded)
    assert found.retry_after_s == 2.5


def test_the_blocking_client_does_the_same(gateway: World, tmp_path: Path) -> None:
    with Client(gateway.address) as client:
        assert client.info().service == "gateway"
        assert [s.name for s in client.students.list()] == ["projects/default/students/fruit"]
        assert [e.resume_token for e in client.jobs.watch("job-1")] == ["5", "10"]
        assert client.jobs.wait("job-1").student_version
        with pytest.raises(NotFound):
            client.students.get("nobody")


@pytest.mark.parametrize("name", ["Datasets", "Jobs", "Students", "Models", "Blobs"])
def test_the_blocking_client_misses_nothing(name: str) -> None:
    blocking = getattr(sync, name)
    group = getattr(sync, f"Async{name}")
    calls = {
        n
        for n, member in inspect.getmembers(group, inspect.isfunction)
        if not n.startswith(("_", "full"))
    }
    assert calls == {n for n in vars(blocking) if not n.startswith("_")}


def test_full_names_are_checked() -> None:
    assert names.full("students", "fruit", project="p") == "projects/p/students/fruit"
    assert names.full("students", "projects/q/students/f") == "projects/q/students/f"
    with pytest.raises(InvalidRequest):
        names.full("students", "projects/q/datasets/f")
    assert names.version("fruit", "3") == "projects/default/students/fruit/versions/3"
    assert names.slug("My Photos (2)") == "my-photos-2"
    assert names.slug("2024") == "d-2024"


def test_a_folder_becomes_a_tar_without_its_links(tmp_path: Path) -> None:
    folder = tmp_path / "fruit"
    (folder / "Ä pfel").mkdir(parents=True)
    (folder / "Ä pfel" / "a.jpg").write_bytes(b"x" * 2_500_000)
    (folder / "b.txt").write_bytes(b"")
    (tmp_path / "secret").write_bytes(b"secret")
    (folder / "link.jpg").symlink_to(tmp_path / "secret")
    seen: list[tuple[int, int]] = []
    pieces = list(upload.chunks(folder, lambda sent, total: seen.append((sent, total))))
    assert max(len(p) for p in pieces) <= upload.CHUNK_BYTES
    assert seen[-1] == (2_500_000, 2_500_000)
    with tarfile.open(fileobj=BytesIO(b"".join(pieces))) as archive:
        sizes = {member.name: member.size for member in archive.getmembers()}
    assert sizes == {"Ä pfel/a.jpg": 2_500_000, "b.txt": 0}


def test_archives_are_sent_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "photos.tar.gz"
    path.write_bytes(b"whatever")
    assert b"".join(upload.chunks(path)) == b"whatever"


async def test_an_upload_arrives_whole(gateway: World, tmp_path: Path) -> None:
    path = tmp_path / "photos.zip"
    path.write_bytes(bytes(range(256)) * 10_000)
    async with AsyncClient(gateway.address) as client:
        archive = await client.datasets.upload(path)
        assert await client.blobs.read(archive.digest) == path.read_bytes()
