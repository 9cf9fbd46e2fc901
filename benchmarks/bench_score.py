"""Language scoring over gRPC beside a bare transformers loop: the same model, dtype and threads.

Callers send pairs of a prompt and an answer, of mixed lengths, to the service process, one pair a
call; the loop sorts the same pairs by length, pads them into batches of its best size and takes the
answers' log-probabilities from the model's logits. The two take turns, so that a busy machine hurts
both. `ratio` is the service's rate over the loop's.
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
from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import grpc.aio
import numpy as np
import torch
from stillhouse.common.v1 import language_pb2
from stillhouse.teacher.v1 import teacher_pb2, teacher_pb2_grpc

from services.common.blobs import BlobStore
from services.common.catalogue import load_catalogue
from services.common.tensors import Array, to_message
from services.teacher.settings import TeacherSettings
from services.torch_common.language.files import ModelSource
from services.torch_common.language.loading import LoadedLanguageModel, load_language_model

MODEL = "smollm2-135m"
BATCH_SIZES = (1, 4, 8, 16, 32)
Pair = tuple[Array, Array]
"""Token ids of a prompt and of its answer, int32."""


def pairs(count: int, loaded: LoadedLanguageModel) -> list[Pair]:
    """Real text cut into prompts of 4 to 200 and answers of 4 to 120 tokens, mixed."""
    ids = loaded.encoder.ids(" ".join(topics.values())[:600_000])  # Python's own manual
    random = np.random.default_rng(0)
    lengths = zip(random.integers(4, 200, count), random.integers(4, 120, count), strict=True)
    found, at = [], 0
    for before, after in lengths:
        part = ids[at : at + before + after]
        found.append((part[:before], part[before:]))
        at = (at + before + after) % (len(ids) - 400)
    return found


class Loop:
    """The bare loop: sort by length, pad on the right, logits of every position."""

    def __init__(self, loaded: LoadedLanguageModel) -> None:
        self._model = loaded.model

    @torch.inference_mode()
    def __call__(self, data: Sequence[Pair], batch_size: int) -> list[float]:
        order = sorted(range(len(data)), key=lambda at: -len(data[at][0]) - len(data[at][1]))
        totals = [0.0] * len(data)
        for begin in range(0, len(order), batch_size):
            chosen = order[begin : begin + batch_size]
            rows = [torch.from_numpy(np.concatenate(data[at]).astype(np.int64)) for at in chosen]
            ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
            mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(r) for r in rows], True)
            logits = self._model(ids, attention_mask=mask, use_cache=False).logits
            for row, at in enumerate(chosen):
                before, after = len(data[at][0]), len(data[at][1])
                part = logits[row, before - 1 : before + after - 1].float().log_softmax(-1)
                answer = ids[row, before : before + after, None]
                totals[at] = float(part.gather(1, answer).sum())
        return totals

    def best_batch_size(self, data: Sequence[Pair]) -> int:
        """The batch size with the highest rate."""
        rates = {}
        for size in BATCH_SIZES:
            started_s = time.perf_counter()
            self(data, size)
            rates[size] = len(data) / (time.perf_counter() - started_s)
        return max(rates, key=lambda size: rates[size])


async def ask(stub: Any, data: Sequence[Pair], callers: int) -> list[Any]:
    """Send every pair once, `callers` at a time, each in a call of its own."""
    answers: list[Any] = [None] * len(data)
    left = iter(range(len(data)))

    async def one() -> None:
        for at in left:
            prompt = language_pb2.Prompt(token_ids=to_message(data[at][0]))
            item = teacher_pb2.ScoreItem(prompt=prompt, token_ids=to_message(data[at][1]))
            name = f"projects/default/models/{MODEL}"
            answers[at] = await stub.Score(teacher_pb2.ScoreRequest(model=name, items=[item]))

    await asyncio.gather(*(one() for _ in range(callers)))
    return answers


async def measure(
    address: str, data: list[Pair], loop: Loop, args: argparse.Namespace
) -> dict[str, Any]:
    """Seconds of every round of the loop and of the service, and whether the two agree."""
    seconds: dict[str, list[float]] = {"loop": [], "service": []}
    async with grpc.aio.insecure_channel(address) as channel:
        stub = teacher_pb2_grpc.TeacherServiceStub(channel)  # type: ignore[no-untyped-call]
        await ask(stub, data[: args.callers], args.callers)
        await asyncio.to_thread(loop, data[: args.callers], 8)
        size = await asyncio.to_thread(loop.best_batch_size, data[: len(data) // 2])
        for _ in range(args.rounds):
            started_s = time.perf_counter()
            totals = await asyncio.to_thread(loop, data, size)
            seconds["loop"].append(time.perf_counter() - started_s)
            started_s = time.perf_counter()
            answers = await ask(stub, data, args.callers)
            seconds["service"].append(time.perf_counter() - started_s)
    served = np.array([one.results[0].score.log_probability for one in answers])
    counts = np.array([one.results[0].score.token_count for one in answers])
    return {
        "seconds": seconds,
        "batch_size_loop": size,
        "batch_size_served": statistics.mean(one.timings.batch_size for one in answers),
        "difference_per_token": float((np.abs(served - np.array(totals)) / counts).mean()),
    }


def report(
    found: dict[str, Any], data: Sequence[Pair], loaded: LoadedLanguageModel
) -> dict[str, Any]:
    """Print the table and return the summary."""
    seconds, tokens = found["seconds"], sum(len(a) + len(b) for a, b in data)
    labels = {
        "loop": f"transformers loop, batch {found['batch_size_loop']}",
        "service": f"gRPC Score (batches of {found['batch_size_served']:.1f})",
    }
    print(f"{'':34}{'tokens/s':>10}{'items/s':>10}")
    for name, label in labels.items():
        median_s = statistics.median(seconds[name])
        print(f"{label:34}{tokens / median_s:10.0f}{len(data) / median_s:10.1f}")
    both = zip(seconds["loop"], seconds["service"], strict=True)
    return {
        "ratio": round(statistics.median(a / b for a, b in both), 3),
        "loop_tokens_per_s": round(tokens / statistics.median(seconds["loop"])),
        "service_tokens_per_s": round(tokens / statistics.median(seconds["service"])),
        "loop_batch_size": found["batch_size_loop"],
        "difference_per_token": round(found["difference_per_token"], 5),
        "precision": loaded.precision,
        "items": len(data),
        "tokens": tokens,
    }


def start(folder: str) -> tuple[subprocess.Popen[str], str]:
    """Start the service on a free port; returns the process and its address."""
    environment = os.environ | {
        "TEACHER_PORT": "0",
        "TEACHER_BLOB_URL": f"{folder}/blobs",
        "TEACHER_PRELOAD": MODEL,
    }
    with Path(folder, "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.teacher"],
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
    parser.add_argument("--items", type=int, default=256)
    parser.add_argument("--callers", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    # Ended from outside, the service is still stopped on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    settings = TeacherSettings()
    torch.set_num_threads(settings.threads)
    with tempfile.TemporaryDirectory() as folder:
        source = ModelSource(load_catalogue(), BlobStore(f"{folder}/none"), settings.cache_dir)
        loaded = load_language_model(source, "default", MODEL)
        data = pairs(args.items, loaded)
        process, address = start(folder)
        try:
            found = asyncio.run(measure(address, data, Loop(loaded), args))
        finally:
            process.terminate()
            process.wait(30)
    print(json.dumps(report(found, data, loaded)))


if __name__ == "__main__":
    main()
