"""Embeddings from the cache, asked by digest through the gateway, beside computing them.

Redis, ConceptsService and the gateway run as processes of their own. One call asks for 64 images by
digest: with an empty cache, where the images are read, decoded and embedded, and with a full one.
Printed beside it: what the cache takes for the regions of as many images, as a job asks for them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import serving_world as world
from stillhouse.common.v1 import items_pb2
from stillhouse.gateway.v1 import models_pb2, models_pb2_grpc

from services.common.blobs import BlobStore
from services.gateway.cache import EmbeddingCache, Regions
from services.gateway.keys import RegionSpace
from tests.e2e.suite import Suite, suite

ENCODER = "projects/default/encoders/effl2-minilm"
Clock = Callable[[], Awaitable[float]]


def store(folder: Path, data: list[bytes]) -> list[str]:
    """Put images into the blob store and return their digests."""
    blobs = BlobStore(str(folder / "blobs"))
    return [blobs.put("default", one) for one in data]


async def measure(running: Suite, digests: list[str], args: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of every call, computed and cached."""
    request = models_pb2.EmbedProjectImagesRequest(
        encoder=ENCODER,
        items=[items_pb2.ImageInput(item_id=str(at), digest=d) for at, d in enumerate(digests)],
    )
    cache = EmbeddingCache(f"unix://{running.socket}")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{running.ports['gateway']}") as channel:
        stub = models_pb2_grpc.ModelServiceStub(channel)  # type: ignore[no-untyped-call]

        async def call(cached: int) -> float:
            started_s = time.perf_counter()
            reply = await stub.EmbedProjectImages(request, timeout=120)
            spent_ms = (time.perf_counter() - started_s) * 1000
            assert all(one.HasField("embedding") for one in reply.results)
            assert reply.cached_count == cached
            return spent_ms

        computed = []
        for _ in range(args.rounds + 1):
            await cache._redis.flushall()
            computed.append(await call(0))
        await call(len(digests))
        hits = [await call(len(digests)) for _ in range(args.calls)]
    regions = await look_up(cache, digests, args.calls)
    await cache.close()
    return {"computed": computed[1:], "cached": hits, "regions": regions}


async def look_up(cache: EmbeddingCache, digests: list[str], calls: int) -> list[float]:
    """Milliseconds of looking up regions, as large as the encoder's, without the gateway."""
    space = RegionSpace("default", "1" * 64, "2" * 64, "3" * 64)
    rng = np.random.default_rng(0)
    rows, cells = rng.normal(size=(18, 384)).astype(np.float16), np.ones((9, 9), np.uint8)
    await cache.put(space, {digest: Regions(rows, cells) for digest in digests})
    spent = []
    for _ in range(calls):
        started_s = time.perf_counter()
        found = await cache.get(space, digests)
        spent.append((time.perf_counter() - started_s) * 1000)
        assert all(one is not None for one in found)
    return spent


def report(found: dict[str, list[float]], images: int) -> dict[str, Any]:
    """Print the table and return the summary."""
    labels = {
        "computed": f"{images} images, computed",
        "cached": f"{images} images, cached",
        "regions": f"regions of {images} images, cache alone",
    }
    print(f"{'':40}{'p50 ms':>10}{'p99 ms':>10}")
    for name, label in labels.items():
        p50, p99 = (world.percentile(found[name], share) for share in (50, 99))
        print(f"{label:40}{p50:10.2f}{p99:10.2f}")
    p50_ms = statistics.median(found["cached"])
    return {
        "p50_ms": round(p50_ms, 3),
        "p99_ms": world.percentile(found["cached"], 99),
        "computed_ms": round(statistics.median(found["computed"]), 1),
        "speedup": round(statistics.median(found["computed"]) / p50_ms, 1),
        "regions_p50_ms": world.percentile(found["regions"], 50),
        "machine": world.machine(),
    }


def main() -> None:
    """Measure, print a table, then one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--quick", action="store_true", help="2 rounds, 50 calls: does it run?")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.calls = 2, 50
    # Ended from outside, the processes are still stopped on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        digests = store(folder, world.photos(args.images))
        with suite(folder, services=("concepts", "gateway")) as running:
            found = asyncio.run(measure(running, digests, args))
    print(json.dumps(report(found, len(digests))))


if __name__ == "__main__":
    main()
