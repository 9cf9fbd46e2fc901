"""Concepts over gRPC beside a bare open_clip loop: JPEG in, float16 out, the same decoder, one run.

Callers send single images to the service process; the loop decodes in as many threads and runs
open_clip's own model at its best batch size. The two take turns, so that a busy machine hurts both.
Regions and presence are measured against whole-image embeddings over the same wire.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pyarrow.parquet
import torch
from stillhouse.common.v1 import items_pb2
from stillhouse.concepts.v1 import concepts_pb2, concepts_pb2_grpc

from services.common.catalogue import ImageTextEncoder, load_catalogue
from services.common.fetch import ensure, ensure_all
from services.common.images import decode
from services.concepts.concept_sets import built_in
from services.concepts.loading import Loaded, load_towers
from services.concepts.settings import ConceptsSettings

ENCODER = "projects/default/encoders/effl2-minilm"
BATCH_SIZES = (1, 8, 16, 32)


def photos(count: int, cache: Path) -> list[bytes]:
    """JPEG bytes of the first test photos of the fruit set."""
    path = ensure(load_catalogue().get("fruit"), cache)
    table = pyarrow.parquet.read_table(path, columns=["image_data", "dataset"])
    chosen = table.filter(pyarrow.compute.equal(table["dataset"], "test"))["image_data"]
    data = [bytes(one.as_py()) for one in chosen[:count]]
    return (data * (count // len(data) + 1))[:count]


class Loop:
    """The bare loop: decode and transform in threads, one forward pass a batch, float16 rows."""

    def __init__(self, loaded: Loaded, threads: int) -> None:
        self._clip, self._transform = loaded.towers.clip, loaded.preprocessing
        self._pool = ThreadPoolExecutor(threads)

    @torch.inference_mode()
    def __call__(self, data: Sequence[bytes], batch_size: int) -> list[Any]:
        rows: list[Any] = []
        for at in range(0, len(data), batch_size):
            part = self._pool.map(
                lambda one: self._transform(decode(one)), data[at : at + batch_size]
            )
            batch = torch.stack(list(part))
            rows.extend(self._clip.encode_image(batch, normalize=True).half().numpy())  # type: ignore[operator]
        return rows

    def best_batch_size(self, data: Sequence[bytes]) -> int:
        """The batch size with the highest rate on some of the data."""
        rates = {}
        for size in BATCH_SIZES:
            self(data[:size], size)
            started_s = time.perf_counter()
            self(data, size)
            rates[size] = len(data) / (time.perf_counter() - started_s)
        return max(rates, key=lambda size: rates[size])


async def callers(
    count: int, data: Sequence[bytes], call: Callable[[items_pb2.ImageInput], Awaitable[Any]]
) -> list[Any]:
    """Send every image once, `count` at a time, each in a call of its own."""
    answers: list[Any] = [None] * len(data)
    left = iter(range(len(data)))

    async def one() -> None:
        for at in left:
            answers[at] = await call(items_pb2.ImageInput(data=data[at]))

    await asyncio.gather(*(one() for _ in range(count)))
    return answers


async def measure(
    address: str, data: list[bytes], loop: Loop, args: argparse.Namespace
) -> dict[str, Any]:
    """Rates in images a second of the loop and of each RPC, and whether the two agree."""
    words = list(built_in()["everyday"].words[: args.words])
    async with grpc.aio.insecure_channel(address) as channel:
        stub = concepts_pb2_grpc.ConceptsServiceStub(channel)  # type: ignore[no-untyped-call]
        kinds: dict[str, Callable[[items_pb2.ImageInput], Awaitable[Any]]] = {
            "images": lambda item: stub.EmbedImages(
                concepts_pb2.EmbedImagesRequest(encoder=ENCODER, items=[item])
            ),
            "regions": lambda item: stub.EmbedRegions(
                concepts_pb2.EmbedRegionsRequest(encoder=ENCODER, items=[item])
            ),
            "presence": lambda item: stub.ScorePresence(
                concepts_pb2.ScorePresenceRequest(encoder=ENCODER, items=[item], concepts=words)
            ),
        }
        for call in kinds.values():
            await callers(args.callers, data[: args.callers], call)
        size = await asyncio.to_thread(loop.best_batch_size, data[: args.callers])
        seconds: dict[str, list[float]] = {name: [] for name in ("loop", *kinds)}
        for _ in range(args.rounds):
            started_s = time.perf_counter()
            rows = await asyncio.to_thread(loop, data, size)
            seconds["loop"].append(time.perf_counter() - started_s)
            for name, call in kinds.items():
                started_s = time.perf_counter()
                answers = await callers(args.callers, data, call)
                seconds[name].append(time.perf_counter() - started_s)
                if name == "images":
                    served = answers
    own = np.stack([np.frombuffer(a.results[0].embedding.data, "<f2") for a in served])
    batches = [a.timings.batch_size for a in served]
    return {
        "seconds": seconds,
        "batch_size_loop": size,
        "batch_size_served": statistics.mean(batches),
        "largest_difference": float(np.abs(own.astype(np.float32) - np.stack(rows)).max()),
    }


def ratio(seconds: dict[str, list[float]], above: str, below: str) -> float:
    """Median over rounds of the ratio of two times of one round."""
    pairs = zip(seconds[above], seconds[below], strict=True)
    return statistics.median(a / b for a, b in pairs)


def report(found: dict[str, Any], images: int) -> dict[str, Any]:
    """Print the table and return the summary."""
    seconds = found["seconds"]
    print(f"{'':34}{'images/s':>10}{'ms/image':>10}")
    labels = {
        "loop": f"open_clip loop, batch {found['batch_size_loop']}",
        "images": f"gRPC images (batches of {found['batch_size_served']:.1f})",
        "regions": "gRPC regions",
        "presence": "gRPC presence",
    }
    for name, label in labels.items():
        median_s = statistics.median(seconds[name])
        print(f"{label:34}{images / median_s:10.1f}{1000 * median_s / images:10.2f}")
    return {
        "ratio": round(ratio(seconds, "loop", "images"), 3),
        "regions_ratio": round(ratio(seconds, "regions", "images"), 3),
        "presence_ratio": round(ratio(seconds, "presence", "images"), 3),
        "largest_difference": found["largest_difference"],
        "loop_images_per_s": round(images / statistics.median(seconds["loop"]), 1),
        "service_images_per_s": round(images / statistics.median(seconds["images"]), 1),
        "loop_batch_size": found["batch_size_loop"],
    }


def start(folder: str) -> tuple[subprocess.Popen[str], str]:
    """Start the service on a free port; returns the process and its address."""
    environment = {**os.environ, "CONCEPTS_PORT": "0", "CONCEPTS_BLOB_URL": f"{folder}/blobs"}
    with Path(folder, "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.concepts"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    assert process.stdout is not None
    line = next((line for line in process.stdout if line.startswith("listening ")), "")
    return process, line.removeprefix("listening ").strip()


def main() -> None:
    """Measure, print a table, then one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--callers", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--words", type=int, default=500)
    args = parser.parse_args()
    # Ended from outside, the service is still stopped on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    settings, catalogue = ConceptsSettings(), load_catalogue()
    entry = catalogue.get("effl2-minilm")
    assert isinstance(entry, ImageTextEncoder)
    torch.set_num_threads(settings.threads)
    paths = ensure_all(catalogue, [entry.id], settings.cache_dir)
    loop = Loop(load_towers(entry, catalogue, paths, settings.cache_dir), settings.decode_threads)
    data = photos(args.images, settings.cache_dir)
    with tempfile.TemporaryDirectory() as folder:
        process, address = start(folder)
        try:
            summary = report(asyncio.run(measure(address, data, loop, args)), len(data))
        finally:
            process.terminate()
            process.wait(30)
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
