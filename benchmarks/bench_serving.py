"""Single JPEGs over gRPC beside the library's own loop, and beside a server without batches.

32 callers send one image a call to ConceptsService (effl2-minilm, and open_clip's ViT-B-32 under
random weights) and to TeacherService (EfficientNet-lite0). The loop runs in this process: it
decodes in as many threads and runs open_clip's (timm's) own model at its best batch size, with the
same decoder. The naive server runs one forward pass a request. They take turns, so that a busy
machine hurts all alike; ratios are medians over rounds of rate over the loop's rate.
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
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import serving_world as world
from stillhouse.concepts.v1 import concepts_pb2, concepts_pb2_grpc
from stillhouse.teacher.v1 import teacher_pb2, teacher_pb2_grpc

from tests.support import service


@dataclass(frozen=True)
class Case:
    """A model behind a service, and the same one bare."""

    service: str
    model_id: str
    bare: Callable[[], world.Bare]
    catalogue: Path | None = None
    note: str = ""
    max_batch_ms: float = 0.0
    """The cap of a batch's time; 0 leaves the service's own."""

    @property
    def kind(self) -> str:
        """How the naive server calls it."""
        return "encoder" if self.service == "concepts" else "classifier"

    def environment(self) -> dict[str, str]:
        """The service's settings."""
        prefix = self.service.upper()
        found = {f"{prefix}_PRELOAD": self.model_id}
        if self.max_batch_ms:
            found[f"{prefix}_MAX_BATCH_MS"] = str(self.max_batch_ms)
        return found | ({f"{prefix}_CATALOGUE": str(self.catalogue)} if self.catalogue else {})

    def call(self, channel: grpc.aio.Channel) -> world.Call:
        """A call with one image."""
        if self.service == "concepts":
            encoder = f"projects/default/encoders/{self.model_id}"
            images = concepts_pb2_grpc.ConceptsServiceStub(channel)  # type: ignore[no-untyped-call]
            return lambda item: images.EmbedImages(
                concepts_pb2.EmbedImagesRequest(encoder=encoder, items=[item]), timeout=120
            )
        model = f"projects/default/models/{self.model_id}"
        teacher = teacher_pb2_grpc.TeacherServiceStub(channel)  # type: ignore[no-untyped-call]
        return lambda item: teacher.Classify(
            teacher_pb2.ClassifyRequest(model=model, items=[item]), timeout=120
        )

    def row(self, answer: Any) -> Any:
        """The numbers of an answer with one image, float32."""
        result = answer.results[0]
        if self.service == "concepts":
            return np.frombuffer(result.embedding.data, "<f2").astype(np.float32)
        return np.frombuffer(result.classification.logits.data, "<f4")


async def measure(
    case: Case, addresses: dict[str, str], data: list[bytes], args: argparse.Namespace
) -> dict[str, Any]:
    """Seconds of every round of the loop and of each server; answers of the service's last."""
    loop = world.Loop(case.bare())
    seconds: dict[str, list[float]] = {name: [] for name in ("loop", *addresses)}
    latencies: dict[str, list[float]] = {name: [] for name in addresses}
    async with (
        grpc.aio.insecure_channel(addresses["service"]) as served,
        grpc.aio.insecure_channel(addresses["naive"]) as naive,
    ):
        calls = {"service": case.call(served), "naive": case.call(naive)}
        for call in calls.values():
            await world.ask(args.callers, data[: args.callers], call)
        size = await asyncio.to_thread(loop.best_batch_size, data[: 2 * args.callers])
        batches: list[int] = []
        for _ in range(args.rounds):
            rows, spent_s = await asyncio.to_thread(timed, loop, data, size)
            seconds["loop"].append(spent_s)
            for name, call in calls.items():
                asked = await world.ask(args.callers, data, call)
                seconds[name].append(asked.seconds)
                latencies[name] += asked.latencies_ms
                if name == "service":
                    batches += [answer.timings.batch_size for answer in asked.answers]
                    own = np.stack([case.row(answer) for answer in asked.answers])
    difference = float(np.abs(own - np.stack(rows).astype(np.float32)).max())
    return summary(case, seconds, latencies, batches, size, len(data)) | {
        "largest_difference": difference
    }


def timed(loop: world.Loop, data: list[bytes], size: int) -> tuple[list[Any], float]:
    """The loop's rows and its seconds."""
    started_s = time.perf_counter()
    rows = loop(data, size)
    return rows, time.perf_counter() - started_s


def summary(
    case: Case,
    seconds: dict[str, list[float]],
    latencies: dict[str, list[float]],
    batches: list[int],
    size: int,
    images: int,
) -> dict[str, Any]:
    """Ratios, rates and latencies of one model."""
    ratios = {
        name: statistics.median(a / b for a, b in zip(seconds["loop"], taken, strict=True))
        for name, taken in seconds.items()
    }
    # A batch of n images is told n times, so the mean over batches is the harmonic one over calls.
    mean_batch = statistics.harmonic_mean(batches)
    return {
        "model": case.model_id,
        "ratio": round(ratios["service"], 3),
        "naive_ratio": round(ratios["naive"], 3),
        "images_per_s": {n: round(images / statistics.median(s), 1) for n, s in seconds.items()},
        "p50_ms": {name: world.percentile(ms, 50) for name, ms in latencies.items()},
        "p99_ms": {name: world.percentile(ms, 99) for name, ms in latencies.items()},
        "mean_batch": round(mean_batch, 1),
        "loop_batch": size,
        "max_batch_ms": case.max_batch_ms or world.SETTINGS.max_batch_ms,
        "note": case.note,
    }


def show(found: dict[str, Any]) -> None:
    """Print the table of one model."""
    print(f"\n{found['model']} {found['note']}")
    print(f"{'':36}{'images/s':>10}{'of loop':>9}{'p50 ms':>9}{'p99 ms':>9}")
    labels = {
        "loop": f"the library's loop, batch {found['loop_batch']}",
        "service": f"service, mean batch {found['mean_batch']}",
        "naive": "naive server, batch 1",
    }
    ratios = {"loop": 1.0, "service": found["ratio"], "naive": found["naive_ratio"]}
    for name, label in labels.items():
        ends = "".join(f"{found[k].get(name, ''):>9}" for k in ("p50_ms", "p99_ms"))
        print(f"{label:36}{found['images_per_s'][name]:10.1f}{ratios[name]:9.2f}{ends}", flush=True)


def run(case: Case, data: list[bytes], args: argparse.Namespace) -> dict[str, Any]:
    """Start both servers of a model and measure them."""
    with (
        tempfile.TemporaryDirectory() as folder,
        service(case.service, Path(folder), **case.environment()) as running,
        world.naive_server(case.kind, case.model_id, case.catalogue) as naive,
    ):
        addresses = {"service": running.address, "naive": naive}
        found = asyncio.run(measure(case, addresses, data, args))
    show(found)
    return found


def cases(folder: Path, wanted: list[str], max_batch_ms: float = 0.0) -> list[Case]:
    """The models to measure, by id."""
    note = "(open_clip's architecture under random weights: no package carries trained ones)"
    vit = world.vit_catalogue(folder) if world.VIT in wanted else None
    found = [
        Case("concepts", "effl2-minilm", lambda: world.bare_encoder("effl2-minilm", None)),
        Case("concepts", world.VIT, lambda: world.bare_encoder(world.VIT, vit), vit, note),
        Case("teacher", "efficientnet-lite0", lambda: world.bare_classifier("efficientnet-lite0")),
    ]
    return [replace(one, max_batch_ms=max_batch_ms) for one in found if one.model_id in wanted]


def main() -> None:
    """Measure, print a table per model, then one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--callers", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="64 images, 2 rounds: does it run?")
    every = ["effl2-minilm", world.VIT, "efficientnet-lite0"]
    parser.add_argument("--models", nargs="+", choices=every, default=every)
    parser.add_argument(
        "--max-batch-ms", type=float, default=0.0, help="cap of a batch's time (the services' own)"
    )
    args = parser.parse_args()
    if args.quick:
        args.images, args.rounds = 64, 2
    # Ended from outside, the servers are still stopped on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    data = world.photos(args.images)
    with tempfile.TemporaryDirectory() as folder:
        done = [
            (case, run(case, data, args))
            for case in cases(Path(folder), args.models, args.max_batch_ms)
        ]
    least = {
        f"{name}_ratio": min((f["ratio"] for c, f in done if c.service == name), default=None)
        for name in ("concepts", "teacher")
    }
    naive = max(found["naive_ratio"] for _, found in done)
    models = [found for _, found in done]
    print(json.dumps({**least, "naive_ratio": naive, "models": models, "machine": world.machine()}))


if __name__ == "__main__":
    main()
