"""Encoders by name: loaded once when first asked for, each behind bounded queues on one thread."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from services.common.batching import Batcher
from services.common.catalogue import Catalogue, ImageTextEncoder
from services.common.errors import NotFound
from services.common.fetch import ensure_all
from services.common.tensors import Array
from services.concepts.loading import load_model
from services.concepts.model import EncoderModel, RegionRows
from services.concepts.onnx_export import export_onnx
from services.concepts.settings import ConceptsSettings
from services.concepts.texts import Texts
from services.torch_common.threads import set_threads


@dataclass(frozen=True)
class ServedEncoder:
    """An encoder with its queues and what is known of it."""

    model: EncoderModel
    licence: str
    images: Batcher[Tensor, Array]
    """Image fp32 [3, S, S] to its embedding, float16 [D], unit length."""
    regions: Batcher[Tensor, RegionRows]
    """Image fp32 [3, S, S] to (float16 [R, D] unit rows, uint8 [rows, columns] map)."""
    texts: Texts


class Registry:
    """Loads encoders off the event loop, each once, and keeps them."""

    def __init__(self, settings: ConceptsSettings, catalogue: Catalogue) -> None:
        self._settings, self._catalogue = settings, catalogue
        self._executor = ThreadPoolExecutor(
            1, "encoder", initializer=set_threads, initargs=(settings.threads,)
        )
        self._loaded: dict[str, ServedEncoder] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    def entries(self) -> Iterator[ImageTextEncoder]:
        """Yield the catalogue's encoders, by id."""
        found = [entry for entry in self._catalogue if isinstance(entry, ImageTextEncoder)]
        yield from sorted(found, key=lambda entry: entry.id)

    def loaded(self, encoder_id: str) -> ServedEncoder | None:
        """Return an encoder only where it is in memory."""
        return self._loaded.get(encoder_id)

    async def get(self, encoder_id: str) -> ServedEncoder:
        """Return an encoder, loading it where needed. Raises NotFound."""
        if found := self._loaded.get(encoder_id):
            return found
        entry = self._entry(encoder_id)
        async with self._locks.setdefault(encoder_id, asyncio.Lock()):
            if encoder_id not in self._loaded:
                # Not on the encoders' own thread: those that serve go on serving meanwhile.
                model = await asyncio.to_thread(self._load, entry)
                self._loaded[encoder_id] = self._serve(model, entry.licence)
        return self._loaded[encoder_id]

    async def onnx(self, served: ServedEncoder) -> bytes:
        """Return an encoder's image side as ONNX, made once; forward passes wait meanwhile."""
        path = self._settings.cache_dir / "encoders" / f"{served.model.onnx_key[:32]}.onnx"

        def export() -> bytes:
            if not path.is_file():
                data = export_onnx(served.model)
                partial = path.with_suffix(f".{os.getpid()}")
                partial.write_bytes(data)
                partial.replace(path)
            return path.read_bytes()

        return await asyncio.get_running_loop().run_in_executor(self._executor, export)

    async def close(self) -> None:
        """Stop every queue."""
        served = list(self._loaded.values())
        await asyncio.gather(*(b.close() for one in served for b in (one.images, one.regions)))
        self._executor.shutdown(wait=True)

    def _entry(self, encoder_id: str) -> ImageTextEncoder:
        entry = self._catalogue.get(encoder_id)
        if not isinstance(entry, ImageTextEncoder):
            raise NotFound(f"{encoder_id!r} is a {entry.kind}, not an encoder", resource=encoder_id)
        return entry

    def _load(self, entry: ImageTextEncoder) -> EncoderModel:
        cache = self._settings.cache_dir
        paths = ensure_all(self._catalogue, [entry.id], cache)
        return load_model(entry, self._catalogue, paths, cache, self._settings.device)

    def _serve(self, model: EncoderModel, licence: str) -> ServedEncoder:
        settings = self._settings

        def images(items: list[Tensor], size: int) -> list[Array]:
            return model.images(padded(items, size))[: len(items)]

        def regions(items: list[Tensor], size: int) -> list[RegionRows]:
            return model.regions(padded(items, size), len(items))

        limits = {
            "max_batch": settings.max_batch,
            "max_queue": settings.max_queue_items,
            "shard_batch": settings.shard_batch,
        }
        wait_ms = settings.batch_wait_ms
        return ServedEncoder(
            model,
            licence,
            Batcher(images, self._executor, name=f"{model.id} images", wait_ms=wait_ms, **limits),
            Batcher(regions, self._executor, name=f"{model.id} regions", wait_ms=wait_ms, **limits),
            Texts(model.texts, self._executor, name=f"{model.id} texts", keep=settings.text_cache),
        )


def padded(items: list[Tensor], size: int) -> Tensor:
    """Stack images into fp32 [size, 3, S, S]; the rest is zeros."""
    batch = torch.zeros((size, *items[0].shape))
    torch.stack(items, out=batch[: len(items)])
    return batch
