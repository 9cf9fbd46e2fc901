"""Uploads and thumbnails: what is taken, what is refused and how it is said."""

from __future__ import annotations

import asyncio
import hashlib
import io
import struct
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
from PIL import Image

from services.common.images import crop, decode, thumbnail
from services.gateway.http import thumbnails
from tests.gateway.edge_world import MAX_ARCHIVE, ROOT, World, edge_world, make_archive


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with edge_world(tmp_path, max_image_bytes=200_000) as running:
        yield running


async def parts(data: bytes, size: int = 10_000) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


async def test_an_archive_arrives_whole(world: World) -> None:
    data = make_archive()
    for content in (data, parts(data)):
        answer = await world.http.post(f"{ROOT}/archives", content=content)
        digest = hashlib.sha256(data).hexdigest()
        expected = {"archive": {"digest": digest, "sizeBytes": str(len(data))}}
        assert (answer.status_code, answer.json()) == (200, expected)
    assert world.gateway.blobs.get("default", digest) == data


@pytest.mark.parametrize("content", [b"", b"\x00neither zip nor tar" * 50])
async def test_a_corrupt_archive_is_refused(world: World, content: bytes) -> None:
    answer = await world.http.post(f"{ROOT}/archives", content=content)
    assert answer.status_code == 400
    assert "archive" in answer.json()["message"]


async def test_a_damaged_archive_ends_as_a_failed_dataset_that_says_why(world: World) -> None:
    answer = await world.http.post(f"{ROOT}/archives", content=b"PK\x03\x04" + b"x" * 500)
    body = {"datasetId": "broken", "archive": answer.json()["archive"]}
    assert (await world.post("/datasets", body)).status_code == 200
    async with asyncio.timeout(10):
        while (found := (await world.get("/datasets/broken")).json()["dataset"])["state"] != (
            "DATASET_STATE_FAILED"
        ):
            await asyncio.sleep(0.02)
    assert "archive" in found["error"]["message"]


async def test_a_form_and_a_wrong_project_are_refused(world: World) -> None:
    answer = await world.http.post(f"{ROOT}/archives", files={"f": make_archive()})
    assert answer.status_code == 415
    answer = await world.http.post("/v1/projects/No/archives", content=make_archive())
    assert answer.status_code == 400


async def test_an_archive_over_the_limit_is_refused_at_once(world: World) -> None:
    """Before any of its ten gigabytes were sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", world.edge.port)
    head = f"POST {ROOT}/archives HTTP/1.1\r\nHost: localhost\r\nContent-Length: {10 << 30}\r\n\r\n"
    writer.write(head.encode())
    async with asyncio.timeout(10):
        answer = (await reader.readuntil(b"\r\n\r\n")).decode()
        body = await reader.read(4096)
    writer.close()
    assert answer.startswith("HTTP/1.1 413 ")
    assert "connection: close" in answer.lower()
    assert f"{MAX_ARCHIVE:,} bytes" in body.decode()


async def test_an_archive_that_grows_over_the_limit_is_refused(world: World) -> None:
    content = parts(b"x" * (MAX_ARCHIVE + 300_000))
    answer = await world.http.post(f"{ROOT}/archives", content=content)
    assert answer.status_code == 413
    assert answer.json()["details"][0]["reason"] == "BODY_TOO_LARGE"


async def test_an_upload_that_breaks_off_leaves_nothing(world: World) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", world.edge.port)
    data = make_archive()
    head = (
        f"POST {ROOT}/archives HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    writer.write(head.encode() + data[:-1000])
    await writer.drain()
    await asyncio.sleep(0.2)
    writer.close()
    await asyncio.sleep(0.3)
    assert (await world.get("/datasets")).status_code == 200
    assert not world.gateway.blobs.exists("default", hashlib.sha256(data[:-1000]).hexdigest())


async def put(world: World, data: bytes) -> str:
    return await asyncio.to_thread(world.gateway.blobs.put, "default", data)


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def opened(answer: httpx2.Response) -> Image.Image:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/webp"
    return Image.open(io.BytesIO(answer.content))


async def test_thumbnails_of_a_dataset(world: World) -> None:
    for digest in await world.add_dataset():
        answer = await world.get(f"/images/{digest}", size_px=64)
        assert opened(answer).size == (64, 48)
        assert "immutable" in answer.headers["cache-control"]
        assert answer.headers["cache-control"].startswith("private")
        known = {"If-None-Match": answer.headers["etag"]}
        again = await world.http.get(f"{ROOT}/images/{digest}?size_px=64", headers=known)
        assert (again.status_code, again.content) == (304, b"")


async def test_a_box_shows_a_part(world: World) -> None:
    image = Image.new("RGB", (400, 200), "red")
    image.paste((0, 0, 255), (300, 100, 400, 200))
    digest = await put(world, png(image))
    part = opened(await world.get(f"/images/{digest}", size_px=50, box="0.75,0.5,1,1"))
    assert part.size == (50, 50)
    red, _, blue = part.convert("RGB").getpixel((25, 25))  # type: ignore[misc]
    assert blue > 200 > 50 > red


def test_large_photos_are_decoded_small() -> None:
    """And look no different for it, whole or in part, also where they lie on their side."""
    image = Image.new("RGB", (2400, 1600), "red")
    image.paste((0, 0, 255), (1800, 0, 2400, 800))
    out = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    image.save(out, "JPEG", exif=exif, quality=90)
    small = decode(out.getvalue(), at_least_px=320)
    assert small.size == (400, 600)
    assert decode(out.getvalue()).size == (1600, 2400)
    shown = Image.open(io.BytesIO(thumbnail(out.getvalue(), 160))).convert("RGB")
    assert shown.size == (107, 160)
    blue = thumbnail(out.getvalue(), 160, box=(0.55, 0.8, 0.95, 0.95))
    part = Image.open(io.BytesIO(blue)).convert("RGB")
    assert max(part.size) == 160
    low = [band[0] for band in part.getextrema()]
    assert low[2] > 230


async def test_sizes_are_clamped_and_nothing_is_enlarged(world: World) -> None:
    digest = await put(world, png(Image.new("RGB", (1500, 900))))
    for asked, got in ((1, 32), (32, 32), (9999, 1024)):
        assert opened(await world.get(f"/images/{digest}", size_px=asked)).width == got
    small = await put(world, png(Image.new("RGB", (20, 10))))
    assert opened(await world.get(f"/images/{small}")).size == (20, 10)


async def test_wrong_parameters_are_told(world: World) -> None:
    for query in (
        {"size_px": "-1"},
        {"size_px": "1e3"},
        {"size_px": "9" * 30},
        {"box": "0,0,1"},
        {"box": "0,0,1,nan"},
        {"box": "0,0,1,1.5"},
        {"box": "0.5,0,0.5,1"},
        {"box": "1,1,0,0"},
        {"size": "64"},
    ):
        answer = await world.get(f"/images/{'0' * 64}", **query)
        assert answer.status_code == 400
        assert answer.json()["details"][1]["fieldViolations"][0]["field"]


def bomb() -> bytes:
    """A PNG of few bytes that says it has 30,000 x 30,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(100_000))
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


async def test_what_is_no_image_is_refused(world: World) -> None:
    for data, reason in (
        (bomb(), "IMAGE_TOO_MANY_PIXELS"),
        (b"<html>", "IMAGE_UNKNOWN_FORMAT"),
        (b"\xff\xd8\xff" + bytes(300_000), "IMAGE_TOO_MANY_BYTES"),
        (png(Image.new("RGB", (300, 300)))[:200], "IMAGE_DAMAGED"),
    ):
        answer = await world.get(f"/images/{await put(world, data)}")
        assert answer.status_code == 400
        assert answer.json()["details"][0]["reason"] == reason


async def test_digests_are_checked_and_projects_kept_apart(world: World) -> None:
    assert (await world.get("/images/short")).status_code == 400
    assert (await world.get(f"/images/{'0' * 64}")).status_code == 404
    digest = await put(world, png(Image.new("RGB", (40, 40))))
    assert (await world.get(f"/images/{digest}")).status_code == 200
    assert (await world.http.get(f"/v1/projects/other/images/{digest}")).status_code == 404


async def test_one_callers_thumbnail_is_not_anothers(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = await put(world, png(Image.new("RGB", (40, 40))))
    made = 0
    plain = thumbnails.Thumbnails._read

    async def counted(self: thumbnails.Thumbnails, request: object) -> bytes:
        nonlocal made
        made += 1
        return await plain(self, request)  # type: ignore[arg-type]

    monkeypatch.setattr(thumbnails.Thumbnails, "_read", counted)
    for cookie in ("session=a", "session=a", "session=b"):
        answer = await world.http.get(f"{ROOT}/images/{digest}", headers={"Cookie": cookie})
        assert answer.status_code == 200
    assert made == 2


def test_the_cache_keeps_to_its_limit() -> None:
    cache = thumbnails._Cache(100)
    for key in "abc":
        cache.put(key, bytes(40))
        cache.get("a")
    assert [cache.get(key) is None for key in "abc"] == [False, True, False]
    cache.put("c", bytes(10))
    cache.put("d", bytes(50))
    assert cache.get("a") is not None
    cache.put("huge", bytes(101))
    assert cache.get("huge") is None


def test_a_crop_is_never_empty() -> None:
    image = decode(png(Image.new("RGB", (10, 10))))
    assert crop(image, (0.999, 0.0, 1.0, 0.001)).size == (1, 1)
    assert crop(image, (0.0, 0.0, 1.0, 1.0)).size == (10, 10)
