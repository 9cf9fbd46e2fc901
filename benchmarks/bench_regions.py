"""Regions, and presence over them, beside whole-image embeddings: the same images over one wire.

32 callers send one image a call to ConceptsService. Whole images, regions and the presence of many
words take turns in every round; ratios are medians over rounds of time over the time of whole
images.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import grpc.aio
import serving_world as world
from stillhouse.concepts.v1 import concepts_pb2 as pb
from stillhouse.concepts.v1 import concepts_pb2_grpc

from services.concepts.concept_sets import built_in
from tests.support import service

ENCODER = "projects/default/encoders/effl2-minilm"
KINDS = ("images", "regions", "presence")


def calls(channel: grpc.aio.Channel, words: list[str]) -> dict[str, world.Call]:
    """The three calls with one image."""
    stub = concepts_pb2_grpc.ConceptsServiceStub(channel)  # type: ignore[no-untyped-call]
    return {
        "images": lambda item: stub.EmbedImages(
            pb.EmbedImagesRequest(encoder=ENCODER, items=[item]), timeout=120
        ),
        "regions": lambda item: stub.EmbedRegions(
            pb.EmbedRegionsRequest(encoder=ENCODER, items=[item]), timeout=120
        ),
        "presence": lambda item: stub.ScorePresence(
            pb.ScorePresenceRequest(encoder=ENCODER, items=[item], concepts=words), timeout=120
        ),
    }


async def measure(
    address: str, data: list[bytes], args: argparse.Namespace
) -> dict[str, list[float]]:
    """Seconds of every round by kind."""
    words = list(built_in()["everyday"].words[: args.words])
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    async with grpc.aio.insecure_channel(address) as channel:
        ready = calls(channel, words)
        for call in ready.values():
            await world.ask(args.callers, data[: args.callers], call)
        for _ in range(args.rounds):
            for kind, call in ready.items():
                seconds[kind].append((await world.ask(args.callers, data, call)).seconds)
    return seconds


def report(seconds: dict[str, list[float]], images: int) -> dict[str, Any]:
    """Print the table and return the summary."""
    print(f"{'':12}{'images/s':>10}{'ms/image':>10}{'of images':>11}")
    ratios = {}
    for kind, taken in seconds.items():
        pairs = zip(taken, seconds["images"], strict=True)
        ratios[kind] = statistics.median(mine / whole for mine, whole in pairs)
        median_s = statistics.median(taken)
        rate, each_ms = images / median_s, 1000 * median_s / images
        print(f"{kind:12}{rate:10.1f}{each_ms:10.2f}{ratios[kind]:11.3f}")
    return {
        "ratio": round(ratios["regions"], 3),
        "presence_ratio": round(ratios["presence"], 3),
        "machine": world.machine(),
    }


def main() -> None:
    """Measure, print a table, then one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--callers", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--words", type=int, default=500)
    parser.add_argument("--quick", action="store_true", help="64 images, 2 rounds: does it run?")
    args = parser.parse_args()
    if args.quick:
        args.images, args.rounds = 64, 2
    # Ended from outside, the service is still stopped on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    data = world.photos(args.images)
    with tempfile.TemporaryDirectory() as folder, service("concepts", Path(folder)) as running:
        seconds = asyncio.run(measure(running.address, data, args))
    print(json.dumps(report(seconds, len(data))))


if __name__ == "__main__":
    main()
