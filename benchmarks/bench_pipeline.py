"""How much longer a whole concept job takes than its models alone, and how much a second one.

A suite of real processes runs the concept job on real photos from an empty cache: those of the
fruit set, each once, and mirrored ones where more are asked for. Then, in the same run and with the
same number of threads, a bare loop decodes every photo once and runs teacher trunk and encoder once
each, at the batch shape of the job's shards, with no service, no store and no fit. Both find their
models loaded and warm. Concepts and fit take a fixed time, so the ratio falls with the number of
photos.

After each job a second one follows on the same photos, with as many other words: ImageNet's class
names. It finds teacher outputs and region embeddings where the first one left them, and has its
words to embed and its student to fit. Both pairs are printed, without and with 20 random controls,
and what each stage took.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageOps
from rich.console import Console
from rich.table import Table
from stillhouse.concepts.v1 import concepts_pb2, concepts_pb2_grpc
from stillhouse.gateway.v1 import jobs_pb2, jobs_pb2_grpc
from stillhouse.teacher.v1 import teacher_pb2, teacher_pb2_grpc

from services.common.blobs import digest_of
from services.common.catalogue import load_catalogue
from services.common.fetch import ensure, ensure_all
from services.common.process import keep_memory, share_cores
from services.gateway.builtin_data import iter_fruit
from tests.e2e.suite import PROJECT, Suite, suite

if TYPE_CHECKING:
    from torch import Tensor

SHARD_BATCH = 16
CACHE = Path.home() / ".cache" / "stillhouse"


@dataclass(frozen=True)
class Ran:
    """Seconds of a job, from its creation to its end, and of its stages."""

    total_s: float
    stage_s: dict[str, float]


CONTROLS = {"without controls": -1, "with 20 controls": 20}


def photos(count: int) -> list[tuple[str, bytes]]:
    """Return (class, JPEG) of so many photos, no two alike: the set holds many of them twice, and
    a job computes those once. After the last one come mirrored ones."""
    catalogue = load_catalogue()
    path = ensure(catalogue.get("fruit"), CACHE)
    known = {digest_of(photo.data): photo for photo in reversed(list(iter_fruit(path)))}
    found = [(photo.labels["coarse"], photo.data) for photo in reversed(known.values())]
    assert count <= 2 * len(found), f"there are {2 * len(found)} photos at most"
    return found[:count] + [(name, mirrored(data)) for name, data in found[: count - len(found)]]


def mirrored(data: bytes) -> bytes:
    """Return a photo with left and right exchanged, encoded again."""
    out = io.BytesIO()
    ImageOps.mirror(Image.open(io.BytesIO(data)).convert("RGB")).save(out, "JPEG", quality=92)
    return out.getvalue()


def write(found: Sequence[tuple[str, bytes]], folder: Path) -> str:
    """Write photos into a folder for each class; return the dataset's URI."""
    for at, (name, data) in enumerate(found):
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{at:05d}.jpg").write_bytes(data)
    return f"file://{folder}"


def run_jobs(found: Sequence[tuple[str, bytes]]) -> dict[str, tuple[Ran, Ran]]:
    """Return the first job and the second, by controls."""
    with tempfile.TemporaryDirectory() as folder, suite(Path(folder)) as running:
        running.prepare(len(found), write(found, Path(folder) / "photos"))
        words = other_words(running)
        jobs = {}
        for seed, (label, draws) in enumerate(CONTROLS.items()):
            forget(running)
            warm(running)
            first = running.concept_job(seed=seed)
            second = running.concept_job(seed=seed, concepts=words)
            first.concept.control_draws = second.concept.control_draws = draws
            jobs[label] = (run_job(running, first), run_job(running, second))
    return jobs


def run_job(running: Suite, job: jobs_pb2.DistillationJob) -> Ran:
    """Run a job to its end."""
    started_s = time.perf_counter()
    request = jobs_pb2.WatchDistillationJobRequest(name=running.create(job))
    with running.channel() as channel:
        stub = jobs_pb2_grpc.DistillationServiceStub(channel)
        *_, last = stub.WatchDistillationJob(request, timeout=3600)
    total_s = time.perf_counter() - started_s
    assert last.job.state == jobs_pb2.JOB_STATE_SUCCEEDED, last.job
    return Ran(total_s, {stage.stage: stage.elapsed_s for stage in last.job.stages})


def other_words(running: Suite) -> list[str]:
    """Return as many words as the set of the first job has, none of them in it."""
    from services.torch_common.imagenet import imagenet_class_names

    with running.channel("concepts") as channel:
        stub = concepts_pb2_grpc.ConceptsServiceStub(channel)
        name = f"{PROJECT}/conceptSets/everyday"
        request = concepts_pb2.GetConceptSetRequest(name=name)
        known = list(stub.GetConceptSet(request, timeout=30).concept_set.words)
    taken = {word.casefold() for word in known}
    # A name can stand for two classes, such as a dog's and a garment's.
    by_key = {word.casefold(): word for word in imagenet_class_names()}
    fresh = [word for key, word in by_key.items() if key not in taken]
    return fresh[: len(known)]


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


def warm(running: Suite) -> None:
    """Have the services load what the job will ask, and run it once."""
    with running.channel("teacher") as channel:
        model = teacher_pb2.LoadModelRequest(name=f"{PROJECT}/models/fruit-teacher")
        teacher_pb2_grpc.TeacherServiceStub(channel).LoadModel(model, timeout=300)
    with running.channel("concepts") as channel:
        stub = concepts_pb2_grpc.ConceptsServiceStub(channel)
        encoder = f"{PROJECT}/encoders/effl2-minilm"
        stub.LoadModel(concepts_pb2.LoadModelRequest(name=encoder), timeout=300)
        stub.EmbedTexts(
            concepts_pb2.EmbedTextsRequest(encoder=encoder, texts=["warm"]), timeout=300
        )


def padded(items: list[Tensor]) -> Tensor:
    """Return items stacked and filled with zeros to the batch shape of shards."""
    import torch

    rest = torch.zeros(SHARD_BATCH - len(items), *items[0].shape)
    return torch.cat([torch.stack(items), rest])


def run_bare(photos: Sequence[bytes], threads: int) -> float:
    """Return seconds of decoding photos once and running both models once."""
    import torch

    from services.common import images as codec
    from services.common.catalogue import ImageTextEncoder
    from services.concepts.loading import load_model
    from services.teacher.backbones import load_classifier

    torch.set_num_threads(threads)
    catalogue = load_catalogue()
    entry = catalogue.image_model("efficientnet-lite0")
    teacher = load_classifier(entry, ensure(entry, CACHE))
    composed = catalogue.get("effl2-minilm")
    assert isinstance(composed, ImageTextEncoder)
    paths = ensure_all(catalogue, ["effl2-minilm"], CACHE)
    encoder = load_model(composed, catalogue, paths, CACHE)
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


def report(jobs: dict[str, tuple[Ran, Ran]], bare_s: float, images: int, threads: int) -> None:
    """Print the table."""
    table = Table(title=f"{images} photos, {threads} threads")
    for column in ("what", "seconds", "over bare"):
        table.add_column(column, justify="left" if column == "what" else "right")
    table.add_row("bare: decode once, each model once", f"{bare_s:.1f}", "1.00")
    for label, pair in jobs.items():
        for which, ran in zip(("first", "second"), pair, strict=True):
            over = f"{ran.total_s / bare_s:.2f}"
            table.add_row(f"{which} job, {label}", f"{ran.total_s:.1f}", over)
            for name, value in ran.stage_s.items():
                table.add_row(f"  stage {name}", f"{value:.2f}", "")
    Console(width=100).print(table)


def main() -> None:
    """Measure, print a table, then one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000, help="photos in the dataset")
    parser.add_argument("--quick", action="store_true", help="200 photos")
    arguments = parser.parse_args()
    images = min(arguments.images, 200) if arguments.quick else arguments.images
    share_cores()
    keep_memory()
    threads = len(os.sched_getaffinity(0))
    found = photos(images)
    jobs = run_jobs(found)
    bare_s = run_bare([data for _, data in found], threads)
    report(jobs, bare_s, images, threads)
    (first, second), (controlled, controlled_second) = jobs.values()
    result = {
        "ratio": first.total_s / bare_s,
        "second_job_speedup": first.total_s / second.total_s,
        "ratio_with_controls": controlled.total_s / bare_s,
        "second_job_speedup_with_controls": controlled.total_s / controlled_second.total_s,
        "bare_s": bare_s,
        "job_s": {label: [ran.total_s for ran in pair] for label, pair in jobs.items()},
        "stage_s": {label: [ran.stage_s for ran in pair] for label, pair in jobs.items()},
        "images": images,
        "threads": threads,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
