"""How much longer a whole concept job takes than its models alone.

A suite of real processes runs the concept job on real photos from an empty cache. Then, in the
same run and with the same number of threads, a bare loop decodes every photo once and runs teacher
trunk and encoder once each, at the batch shape of the job's shards, with no service, no store and
no fit. Printed beside it: the job with its 20 random controls, and what each stage took. Concepts
and fit take a fixed time, so the ratio falls with the number of photos.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from stillhouse.gateway.v1 import jobs_pb2

from services.common.process import share_cores
from tests.e2e.suite import Suite, suite

if TYPE_CHECKING:
    from torch import Tensor

SHARD_BATCH = 16


def run_job(images: int) -> tuple[dict[str, float], dict[str, float]]:
    """Return (seconds of the job by controls, seconds by stage of the first job)."""
    with tempfile.TemporaryDirectory() as folder, suite(Path(folder)) as running:
        running.prepare(images)
        seconds, stages = {}, {}
        for label, draws, seed in (("without controls", -1, 0), ("with 20 controls", 20, 1)):
            forget(running)
            job = running.concept_job(seed=seed)
            job.concept.control_draws = draws
            started_s = time.perf_counter()
            done = running.finish(running.create(job), timeout_s=1800)
            seconds[label] = time.perf_counter() - started_s
            stages = stages or stage_seconds(done)
    return seconds, stages


def forget(running: Suite) -> None:
    """Drop all outputs and what the teacher remembers: the next job computes everything again."""
    import shutil

    import redis

    with redis.Redis(unix_socket_path=str(running.socket)) as client:
        client.flushall()
    for stages in running.folder.glob("blobs/projects/*/refs/stages"):
        shutil.rmtree(stages)
    running.kill("teacher")
    running.start("teacher")
    running.wait("teacher")


def stage_seconds(job: jobs_pb2.DistillationJob) -> dict[str, float]:
    """Return seconds by stage."""
    return {stage.stage: stage.elapsed_s for stage in job.stages}


def padded(items: list[Tensor]) -> Tensor:
    """Return items stacked and filled with zeros to the batch shape of shards."""
    import torch

    rest = torch.zeros(SHARD_BATCH - len(items), *items[0].shape)
    return torch.cat([torch.stack(items), rest])


def run_bare(images: int, threads: int) -> float:
    """Return seconds of decoding `images` photos once and running both models once."""
    import torch

    from services.common import images as codec
    from services.common.catalogue import ImageTextEncoder, load_catalogue
    from services.common.fetch import ensure, ensure_all
    from services.concepts.loading import load_model
    from services.gateway.builtin_data import iter_fruit
    from services.teacher.backbones import load_classifier

    torch.set_num_threads(threads)
    cache = Path.home() / ".cache" / "stillhouse"
    catalogue = load_catalogue()
    entry = catalogue.image_model("efficientnet-lite0")
    teacher = load_classifier(entry, ensure(entry, cache))
    composed = catalogue.get("effl2-minilm")
    assert isinstance(composed, ImageTextEncoder)
    paths = ensure_all(catalogue, ["effl2-minilm", "fruit"], cache)
    encoder = load_model(composed, catalogue, paths, cache)
    photos = [
        photo.data for _, photo in zip(range(images), iter_fruit(paths["fruit"]), strict=False)
    ]
    teacher.warmup(SHARD_BATCH)
    encoder.regions(padded([encoder.preprocessing(codec.decode(photos[0]))]), 1)
    started_s = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:

        def prepare(data: bytes) -> tuple[torch.Tensor, torch.Tensor]:
            image = codec.decode(data)
            return teacher.preprocess(image), encoder.preprocessing(image)

        for at in range(0, len(photos), SHARD_BATCH):
            pairs = list(pool.map(prepare, photos[at : at + SHARD_BATCH]))
            teacher.forward_padded([pair[0] for pair in pairs], SHARD_BATCH)
            encoder.regions(padded([pair[1] for pair in pairs]), len(pairs))
    return time.perf_counter() - started_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1600, help="photos in the dataset")
    arguments = parser.parse_args()
    share_cores()
    threads = len(os.sched_getaffinity(0))
    seconds, stages = run_job(arguments.images)
    bare_s = run_bare(arguments.images, threads)
    table = Table(title=f"{arguments.images} photos, {threads} threads")
    for column in ("what", "seconds", "over bare"):
        table.add_column(column, justify="left" if column == "what" else "right")
    table.add_row("bare: decode once, each model once", f"{bare_s:.1f}", "1.00")
    for label, value in seconds.items():
        table.add_row(f"whole job, {label}", f"{value:.1f}", f"{value / bare_s:.2f}")
    for name, value in stages.items():
        table.add_row(f"  stage {name}", f"{value:.1f}", "")
    Console(width=100).print(table)
    result = {
        "ratio": seconds["without controls"] / bare_s,
        "ratio_with_controls": seconds["with 20 controls"] / bare_s,
        "bare_s": bare_s,
        "job_s": seconds,
        "stage_s": stages,
        "images": arguments.images,
        "threads": threads,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
