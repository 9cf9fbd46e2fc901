"""Encoders by name: loaded when first asked for, each behind bounded queues on one thread."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

from torch import Tensor

from services.common import metrics
from services.common.batching import Batcher, Run
from services.common.catalogue import Catalogue, ImageTextEncoder
from services.common.device import Device
from services.common.errors import NotFound, Overloaded
from services.common.fairness import ONLINE
from services.common.fetch import ensure_all
from services.common.resident import Loaded, LoadedModel, Residents
from services.common.tensors import Array
from services.concepts.loading import load_model
from services.concepts.model import EncoderModel, RegionRows
from services.concepts.onnx_export import export_onnx
from services.concepts.settings import ConceptsSettings
from services.concepts.texts import Texts
from services.torch_common.compute import Compute
from services.torch_common.lanes import Lanes
from services.torch_common.threads import set_threads

R = TypeVar("R")


@dataclass(frozen=True)
class ServedEncoder:
    """An encoder with its queues and what is known of it."""

    model: EncoderModel
    licence: str
    images: Batcher[Tensor, Array]
    """Image as `EncoderModel.square` gives it to its embedding, float16 [D], unit length."""
    regions: Batcher[Tensor, RegionRows]
    """Image as `EncoderModel.square` gives it to (float16 [R, D] unit rows, uint8 [rows, columns]
    map)."""
    texts: Texts


class Registry:
    """Loads encoders off the event loop, each once, and keeps those that fit the budget."""

    def __init__(self, settings: ConceptsSettings, catalogue: Catalogue) -> None:
        self._settings, self._catalogue = settings, catalogue
        self._executor = ThreadPoolExecutor(
            1, "encoder", initializer=set_threads, initargs=(settings.threads,)
        )
        self._device = Device(self._executor, settings.weights)
        self._compute = Compute.of(settings)
        self._lanes = Lanes(self._compute.lanes(settings.threads))
        self._residents: Residents[str, ServedEncoder] = Residents(
            settings.max_models_bytes,
            self._put_away,
            pinned=lambda encoder_id: encoder_id == settings.preload,
        )

    def entries(self) -> Iterator[ImageTextEncoder]:
        """Yield the catalogue's encoders, by id."""
        found = [entry for entry in self._catalogue if isinstance(entry, ImageTextEncoder)]
        yield from sorted(found, key=lambda entry: entry.id)

    def loaded(self, encoder_id: str) -> ServedEncoder | None:
        """Return an encoder only where it is in memory."""
        return self._residents.find(encoder_id)

    @asynccontextmanager
    async def use(self, encoder_id: str) -> AsyncIterator[ServedEncoder]:
        """An encoder that stays in memory while the block runs; loads it where needed.

        Raises NotFound, and Overloaded or Precondition where there is no memory for it.
        """
        entry = self._entry(encoder_id)
        async with self._residents.use(encoder_id, lambda: self._load(entry)) as served:
            yield served

    async def get(self, encoder_id: str) -> ServedEncoder:
        """Return an encoder to look at, loading it where needed; `use` computes with one.

        Raises as `use`.
        """
        async with self.use(encoder_id) as served:
            return served

    async def load(self, project: str, encoder_id: str) -> LoadedModel:
        """Have an encoder in memory, as an operator wishes; every project may use it.

        Raises as `use`.
        """
        async with self.use(encoder_id):
            for one in self.loaded_models():
                if one.model_id == encoder_id:
                    return replace(one, users=one.users - 1)  # without this call
        raise Overloaded(f"{encoder_id} was put away again")

    async def unload(self, project: str, encoder_id: str) -> bool:
        """Put an encoder away, once calls in flight are done.

        Returns whether it was in memory. Raises NotFound, Precondition for the preloaded one.
        """
        return await self._residents.unload(self._entry(encoder_id).id)

    def loaded_models(self) -> list[LoadedModel]:
        """Return what is in memory, least recently used first."""
        return [
            LoadedModel.of(one, "", one.key, digest=one.model.model.digest)
            for one in self._residents
        ]

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

        return await self._device.run(export, flow=ONLINE)

    async def close(self) -> None:
        """Stop every queue."""
        await self._residents.close()
        self._executor.shutdown(wait=True)
        self._lanes.close()

    async def _put_away(self, served: ServedEncoder) -> None:
        await asyncio.gather(served.images.close(), served.regions.close())
        for what in ("images", "regions", "texts"):
            metrics.forget_model(f"{served.model.id} {what}")
        self._compute.forget()

    def _entry(self, encoder_id: str) -> ImageTextEncoder:
        entry = self._catalogue.get(encoder_id)
        if not isinstance(entry, ImageTextEncoder):
            raise NotFound(f"{encoder_id!r} is a {entry.kind}, not an encoder", resource=encoder_id)
        return entry

    async def _load(self, entry: ImageTextEncoder) -> Loaded[ServedEncoder]:
        # Not on the encoders' own thread: those that serve go on serving meanwhile.
        model = await asyncio.to_thread(self._read, entry)
        await self._warm(model)
        return Loaded(self._serve(model, entry.licence), model.size_bytes)

    def _read(self, entry: ImageTextEncoder) -> EncoderModel:
        set_threads(self._settings.threads)  # what is computed once for an encoder is kept
        cache = self._settings.cache_dir
        paths = ensure_all(self._catalogue, [entry.id], cache)
        return load_model(entry, self._catalogue, paths, cache, self._compute)

    async def _warm(self, model: EncoderModel) -> None:
        """Run the batch shapes that calls will have, in the encoders' thread."""
        settings = self._settings
        loop = asyncio.get_running_loop()
        for size in self._compute.warm_shapes(settings.max_batch, settings.shard_batch):
            # One at a time: calls to other encoders go on in between.
            await loop.run_in_executor(self._executor, model.warmup, size)

    def _serve(self, model: EncoderModel, licence: str) -> ServedEncoder:
        settings, compute, lanes = self._settings, self._compute, self._lanes

        def batch(items: list[Tensor], size: int) -> Tensor:
            return model.batch(items, compute.shape_of(size, settings.max_batch))

        def some_images(items: list[Tensor], size: int) -> list[Array]:
            return model.images(batch(items, size))[: len(items)]

        def some_regions(items: list[Tensor], size: int) -> list[RegionRows]:
            return model.regions(batch(items, size), len(items))

        images = functools.partial(lanes.run, some_images)
        regions = functools.partial(lanes.run, some_regions)

        return ServedEncoder(
            model,
            licence,
            self._batcher(images, f"{model.id} images"),
            self._batcher(regions, f"{model.id} regions"),
            Texts(
                model.texts,
                self._device,
                name=f"{model.id} texts",
                keep=self._settings.text_cache,
            ),
        )

    def _batcher(self, run: Run[Tensor, R], name: str) -> Batcher[Tensor, R]:
        settings = self._settings
        return Batcher(
            run,
            self._device,
            name=name,
            max_batch=settings.max_batch,
            shard_batch=settings.shard_batch,
            wait_ms=settings.batch_wait_ms,
            max_batch_ms=settings.max_batch_ms,
            max_queue=settings.max_queue_items,
        )
