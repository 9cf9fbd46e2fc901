"""What the serving benchmarks share: photos, models to serve, a bare loop, callers, processes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import torch
from safetensors.torch import load_file, save_file
from stillhouse.common.v1 import items_pb2

from services.common.catalogue import ImageTextEncoder, load_catalogue
from services.common.fetch import ensure, ensure_all
from services.common.images import decode
from services.common.process import keep_memory
from services.concepts.encoder import open_clip_model
from services.concepts.loading import load_towers
from services.concepts.settings import ConceptsSettings
from services.torch_common.language.precision import device_name
from services.torch_common.preprocess import Preprocessing
from services.torch_common.timm_models import build_timm

BATCH_SIZES = (1, 4, 8, 16, 32)
VIT = "vit-b-32"
keep_memory()  # as the services do: a loop's best batch would be small, and slow, without
SETTINGS = ConceptsSettings()
"""Threads and cache of the loops are those of the services."""
Call = Callable[[items_pb2.ImageInput], Awaitable[Any]]


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "cpu": device_name("cpu"),
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
    }


def photos(count: int) -> list[bytes]:
    """JPEG bytes of the first test photos of the fruit set, again from the first where they end."""
    path = ensure(load_catalogue().get("fruit"), SETTINGS.cache_dir)
    table = pyarrow.parquet.read_table(path, columns=["image_data", "dataset"])
    chosen = table.filter(pyarrow.compute.equal(table["dataset"], "test"))["image_data"]
    data = [bytes(one.as_py()) for one in chosen[:count]]
    return (data * (count // len(data) + 1))[:count]


def vit_catalogue(folder: Path) -> Path:
    """A catalogue with open_clip's ViT-B-32 under random weights: no package carries trained ones,
    and a forward pass takes the same time under any."""
    towers = open_clip_model("ViT-B-32")
    state = {name: value.contiguous() for name, value in towers.clip.state_dict().items()}
    save_file(state, folder / "vit.safetensors")
    path = folder / "catalogue.toml"
    path.write_text(
        f'[entries.{VIT}]\nkind = "image-text-encoder"\nloader = "open_clip"\nlicence = "none"\n'
        'architecture = "ViT-B-32"\nsource = "file:vit.safetensors"\n'
    )
    return path


@dataclass(frozen=True)
class Bare:
    """A model as its library runs it: normalised [B, 3, S, S] to rows, and what it is fed."""

    run: Callable[[torch.Tensor], torch.Tensor]
    preprocessing: Preprocessing


def bare_encoder(encoder_id: str, catalogue_path: Path | None) -> Bare:
    """open_clip's own model of an encoder."""
    catalogue = load_catalogue([catalogue_path] if catalogue_path else [])
    entry = catalogue.get(encoder_id)
    assert isinstance(entry, ImageTextEncoder)
    paths = ensure_all(catalogue, [entry.id], SETTINGS.cache_dir)
    loaded = load_towers(entry, catalogue, paths, SETTINGS.cache_dir)
    encode = loaded.towers.clip.encode_image
    return Bare(lambda batch: encode(batch, normalize=True), loaded.preprocessing)  # type: ignore[operator]


def bare_classifier(model_id: str) -> Bare:
    """timm's own model of a classifier."""
    entry = load_catalogue().image_model(model_id)
    assert entry.input is not None
    state = load_file(ensure(entry, SETTINGS.cache_dir))
    classes = len(state["classifier.weight"])
    model = build_timm(entry.architecture, classes, entry.variant)
    model.load_state_dict(state)
    return Bare(model, Preprocessing.from_spec(entry.input))


class Loop:
    """The bare loop: decode and transform in threads, one forward pass a batch, float16 rows."""

    def __init__(self, model: Bare) -> None:
        torch.set_num_threads(SETTINGS.threads)
        self._model = model
        self._pool = ThreadPoolExecutor(SETTINGS.decode_threads)

    @torch.inference_mode()
    def __call__(self, data: Sequence[bytes], batch_size: int) -> list[Any]:
        rows: list[Any] = []
        for at in range(0, len(data), batch_size):
            part = self._pool.map(self._read, data[at : at + batch_size])
            rows.extend(self._model.run(torch.stack(list(part))).half().numpy())
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

    def _read(self, data: bytes) -> torch.Tensor:
        return self._model.preprocessing(decode(data))


@dataclass
class Asked:
    """Answers in the order of the images, how long each took, and how long all of them."""

    answers: list[Any]
    latencies_ms: list[float]
    seconds: float


async def ask(count: int, data: Sequence[bytes], call: Call) -> Asked:
    """Send every image once, `count` at a time, each in a call of its own."""
    answers: list[Any] = [None] * len(data)
    latencies_ms = [0.0] * len(data)
    left = iter(range(len(data)))

    async def one() -> None:
        for at in left:
            started_s = time.perf_counter()
            answers[at] = await call(items_pb2.ImageInput(data=data[at]))
            latencies_ms[at] = (time.perf_counter() - started_s) * 1000

    started_s = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(count)))
    return Asked(answers, latencies_ms, time.perf_counter() - started_s)


def percentile(values: Sequence[float], share: float) -> float:
    """A percentile of values, `share` from 0 to 100."""
    return round(float(np.percentile(values, share)), 2)


@contextmanager
def naive_server(kind: str, model_id: str, catalogue: Path | None) -> Iterator[str]:
    """Run `naive_server.py` until the block ends; yields its address."""
    script = Path(__file__).with_name("naive_server.py")
    command = [sys.executable, str(script), kind, model_id]
    if catalogue:
        command += ["--catalogue", str(catalogue)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    try:
        line = next((line for line in process.stdout if line.startswith("listening ")), "")
        if not line:
            raise RuntimeError("the naive server did not start")
        yield line.removeprefix("listening ").strip()
    finally:
        process.terminate()
        process.wait(30)
