"""A teacher service in this process on a tiny random network, and peers that ask it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import torch
from prometheus_client import REGISTRY
from safetensors.torch import save_file
from stillhouse.common.v1 import info_pb2
from stillhouse.teacher.v1 import teacher_pb2

from services.common.blobs import BlobStore
from services.common.catalogue import load_catalogue
from services.common.parts import in_parts
from services.teacher.language.calls import LanguageCalls
from services.teacher.registry import Registry
from services.teacher.servicer import TeacherServicer
from services.teacher.settings import TeacherSettings
from services.torch_common.language.files import ModelSource
from services.torch_common.timm_models import build_timm

MODEL = "tiny-teacher"
NAME = f"projects/default/models/{MODEL}"
SIZE_PX = 32
CLASSES = ("red", "green", "blue")


def make_catalogue(folder: Path, entries: str = "") -> Path:
    """A random test_resnet of three classes as a catalogue entry, and further `entries` as text."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    save_file(build_timm("test_resnet", len(CLASSES)).state_dict(), folder / "tiny.safetensors")
    path = folder / "catalogue.toml"
    path.write_text(
        f'[entries.{MODEL}]\nkind = "image-classifier"\nloader = "timm"\nlicence = "CC0-1.0"\n'
        f'architecture = "test_resnet"\nsource = "file:{folder / "tiny.safetensors"}"\n'
        f"classes = {list(CLASSES)}\n"
        f"input = {{ size_px = {SIZE_PX}, mean = [0.5, 0.5, 0.5], std = [0.5, 0.5, 0.5] }}\n"
        f"{entries}"
    )
    return path


@contextlib.asynccontextmanager
async def teacher(
    folder: Path,
    *,
    entries: str = "",
    also: Callable[[Path], Path] | None = None,
    **settings: Any,
) -> AsyncIterator[TeacherServicer]:
    """The servicer, closed at the end; blobs are in `folder`/blobs, `entries` in its catalogue.
    `also` writes a further catalogue into the folder."""
    made = TeacherSettings(
        blob_url=str(folder / "blobs"),
        cache_dir=folder / "cache",
        **{"preload": MODEL, "shard_batch": 4, "threads": 1, **settings},
    )
    paths = [make_catalogue(folder, entries), *([also(folder)] if also else [])]
    blobs, catalogue = BlobStore(made.blob_url), load_catalogue(paths)
    registry = Registry(made, catalogue, blobs)
    source = ModelSource(catalogue, blobs, made.cache_dir)
    language = LanguageCalls(made, source, registry.device, blobs)
    servicer = TeacherServicer(made, registry, blobs, language)
    try:
        yield servicer
    finally:
        await servicer.close()


def counted(model: str = MODEL) -> tuple[float, float]:
    """Forward passes of a model so far, and images in them, as the metrics page tells."""
    return tuple(  # type: ignore[return-value]
        REGISTRY.get_sample_value(f"stillhouse_batch_items_{what}", {"model": model}) or 0.0
        for what in ("count", "sum")
    )


class TeacherPeers:
    """What stages ask of a gateway's peers, answered by a servicer without a network."""

    shard_timeout_s = 60.0

    def __init__(self, servicer: TeacherServicer) -> None:
        self.teacher = servicer

    async def ask(
        self, method: Any, request: teacher_pb2.ClassifyRequest, *, timeout_s: float
    ) -> Any:
        return await method(request, None)

    async def parts(self, peer: str, items: Any, bytes_of: Any) -> list[list[Any]]:
        return in_parts(items, bytes_of, info_pb2.Limits())

    async def persist(self, attempt: Any, *, what: str) -> Any:
        return await attempt()
