"""Models by name: the catalogue's, and what a project's jobs have trained, heads and whole
classifiers; loaded when first asked for."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from services.common import metrics
from services.common.batching import Batcher
from services.common.blobs import BlobStore
from services.common.catalogue import Catalogue, ImageModel, LanguageModel
from services.common.classifier_records import KIND as TRAINED_CLASSIFIER
from services.common.classifier_records import ClassifierRecord
from services.common.device import Device
from services.common.errors import InvalidInput, NotFound, Overloaded, Precondition
from services.common.fetch import ensure
from services.common.model_records import KIND as LANGUAGE_MODEL
from services.common.resident import Loaded, LoadedModel, Residents
from services.common.tensors import Array, unpack_arrays
from services.teacher.backbones import load_classifier
from services.teacher.models import ImageClassifier, with_head
from services.teacher.served import Row, RowMemory, ServedModel, rows_of
from services.teacher.settings import TeacherSettings
from services.teacher.trained import load_trained
from services.torch_common.compute import Compute
from services.torch_common.heads import LinearHead
from services.torch_common.lanes import Lanes
from services.torch_common.threads import set_threads

Key = tuple[str, str]
"""Project and model id; the project is empty for the catalogue's."""


@dataclass(frozen=True, order=True)
class ListedModel:
    """What is known of a model before it is loaded; `classes` is empty for ImageNet's 1,000."""

    model_id: str
    licence: str
    classes: tuple[str, ...]
    size_px: int
    trunk: str


class Registry:
    """Loads models off the event loop, each once, and keeps those that fit the budget."""

    def __init__(self, settings: TeacherSettings, catalogue: Catalogue, blobs: BlobStore) -> None:
        self._settings, self._catalogue, self._blobs = settings, catalogue, blobs
        self.executor = ThreadPoolExecutor(
            1, "model", initializer=set_threads, initargs=(settings.threads,)
        )
        """The one thread in which every model computes."""
        self.device = Device(self.executor, settings.weights)
        """Gives turns in it."""
        self._compute = Compute.of(settings)
        self._lanes = Lanes(self._compute.lanes(settings.threads))
        preload = settings.preload
        self._residents: Residents[Key, ServedModel] = Residents(
            settings.max_models_bytes,
            self._put_away,
            pinned=lambda key: key in {("", preload), ("default", preload)},
        )

    @asynccontextmanager
    async def use(self, project: str, model_id: str) -> AsyncIterator[ServedModel]:
        """A model that stays in memory while the block runs; loads it where needed.

        Raises NotFound, and Overloaded or Precondition where there is no memory for it.
        """
        key = self._key(project, model_id)
        async with self._residents.use(key, lambda: self._load(key)) as served:
            yield served

    async def get(self, project: str, model_id: str) -> ServedModel:
        """Return a model to look at, loading it where needed; `use` computes with one.

        Raises as `use`.
        """
        async with self.use(project, model_id) as served:
            return served

    async def load(self, project: str, model_id: str) -> LoadedModel:
        """Have a model in memory, as an operator wishes. Raises as `use`."""
        key = self._key(project, model_id)
        async with self.use(project, model_id):
            for one in self.loaded_models():
                if (one.project, one.model_id) == key:
                    return replace(one, users=one.users - 1)  # without this call
        raise Overloaded(f"{model_id} was put away again")

    async def unload(self, project: str, model_id: str) -> bool:
        """Put a model away, with the heads on it, once calls in flight are done.

        Returns whether it was in memory. Raises NotFound, Precondition for the preloaded one.
        """
        key = self._key(project, model_id)
        if await self._residents.unload(key):
            return True
        if key[0]:
            await asyncio.to_thread(self._record, project, model_id)
        return False

    async def forget(self, project: str, *, dry_run: bool = False) -> int:
        """Put away a project's models, once their calls are done, and drop what is remembered of
        its images; return how many there were."""
        count = 0
        memories = {id(one.model.remembered): one.model.remembered for one in self._residents}
        for memory in memories.values():
            count += memory.forget(project, dry_run=dry_run)
        keys = [one.key for one in self._residents if one.key[0] == project]
        for key in () if dry_run else keys:
            await self._residents.unload(key)
        return count + len(keys)

    def loaded_models(self) -> list[LoadedModel]:
        """Return what is in memory, of all projects, least recently used first."""
        return [
            LoadedModel.of(one, *one.key, digest=one.model.classifier.digest)
            for one in self._residents
        ]

    def loaded(self, project: str) -> dict[str, str]:
        """Return the digests of the models in memory that a project can use, by id."""
        found = self.loaded_models()
        return {one.model_id: one.digest for one in found if one.project in ("", project)}

    def listed(self, project: str) -> Iterator[ListedModel]:
        """Yield every image classifier the project can use, none of them loaded. Blocking."""
        for entry in self._catalogue:
            if isinstance(entry, ImageModel):
                yield _listed(entry)
        for model_id in self._blobs.list_refs(project, "models"):
            try:
                record = self._record(project, model_id)
            except Precondition:  # a language model
                continue
            if isinstance(record, ClassifierRecord):
                size_px, trunk = record.input.size_px, record.architecture
                yield ListedModel(model_id, record.licence, record.classes, size_px, trunk)
                continue
            trunk = str(record["backbone"])
            under = self._catalogue.get(trunk) if trunk in self._catalogue else None
            size_px = _listed(under).size_px if isinstance(under, ImageModel) else 0
            yield ListedModel(model_id, "", _names(record["classes"]), size_px, trunk)

    @property
    def catalogue(self) -> Catalogue:
        """What there is to load, besides the projects' own."""
        return self._catalogue

    async def close(self) -> None:
        """Stop every queue."""
        await self._residents.close()
        self.executor.shutdown(wait=True)
        self._lanes.close()

    def _key(self, project: str, model_id: str) -> Key:
        return ("", model_id) if model_id in self._catalogue else (project, model_id)

    async def _put_away(self, served: ServedModel) -> None:
        if served.head is None:  # a head shares the queue of its trunk
            await served.batcher.close()
            metrics.forget_model(served.classifier.id)
            self._compute.forget()

    async def _load(self, key: Key) -> Loaded[ServedModel]:
        project, model_id = key
        if not project:
            if isinstance(self._catalogue.get(model_id), LanguageModel):
                raise _is_language(model_id)
            entry = self._catalogue.image_model(model_id)
            classifier = await asyncio.to_thread(self._from_catalogue, entry)
            return await self._warm(self._serve(classifier, entry.licence))
        record = await asyncio.to_thread(self._record, project, model_id)
        if isinstance(record, ClassifierRecord):
            return await self._warm(
                await asyncio.to_thread(self._trained, project, model_id, record)
            )
        trunk = str(record["backbone"])
        async with self.use(project, trunk) as backbone:
            served = await asyncio.to_thread(self._with_head, project, model_id, record, backbone)
        return Loaded(served, _head_bytes(served), under=backbone)

    async def _warm(self, served: ServedModel) -> Loaded[ServedModel]:
        """Run the batch shapes that calls will have, in the models' thread."""
        settings, classifier = self._settings, served.classifier
        loop = asyncio.get_running_loop()
        for size in self._compute.warm_shapes(settings.max_batch, settings.shard_batch):
            # One at a time: calls to other models go on in between.
            await loop.run_in_executor(self.executor, classifier.warmup, size)
        return Loaded(served, classifier.size_bytes)

    def _serve(self, classifier: ImageClassifier, licence: str) -> ServedModel:
        settings, compute = self._settings, self._compute

        def some(items: list[Tensor], size: int) -> list[Row]:
            shape = compute.shape_of(size, settings.max_batch)
            return rows_of(classifier.forward_padded(items, shape))

        batcher: Batcher[Tensor, Row] = Batcher(
            functools.partial(self._lanes.run, some),
            self.device,
            name=classifier.id,
            max_batch=settings.max_batch,
            wait_ms=settings.batch_wait_ms,
            max_batch_ms=settings.max_batch_ms,
            max_queue=settings.max_queue_items,
            shard_batch=settings.shard_batch,
        )
        memory = RowMemory(settings.remembered_rows)
        return ServedModel(classifier, batcher, memory, licence, classifier.id)

    def _from_catalogue(self, entry: ImageModel) -> ImageClassifier:
        set_threads(self._settings.threads)
        path = ensure(entry, self._settings.cache_dir)
        return load_classifier(entry, path, self._compute)

    def _trained(self, project: str, model_id: str, record: ClassifierRecord) -> ServedModel:
        set_threads(self._settings.threads)
        classifier = load_trained(model_id, record, self._blobs, project, self._compute)
        served = self._serve(classifier, record.licence)
        return replace(served, trunk=record.architecture, single_label=record.single_label)

    def _record(self, project: str, model_id: str) -> dict[str, object] | ClassifierRecord:
        try:
            data = self._blobs.get_ref(project, f"models/{model_id}")
            record = json.loads(data)
        except NotFound:
            # The catalogue's own error names the nearest ids.
            self._catalogue.get(model_id)
            raise
        if isinstance(record, dict) and record.get("kind") == LANGUAGE_MODEL:
            raise _is_language(model_id)
        if isinstance(record, dict) and record.get("kind") == TRAINED_CLASSIFIER:
            return ClassifierRecord.from_bytes(data)
        if not isinstance(record, dict) or record.get("kind") != "linear_head":
            raise InvalidInput(f"model {model_id}: its record is not understood", field="model")
        return record

    def _with_head(
        self, project: str, model_id: str, record: dict[str, object], backbone: ServedModel
    ) -> ServedModel:
        if record.get("backbone_digest") != backbone.classifier.digest:
            raise InvalidInput(
                f"model {model_id} stands on another version of {backbone.trunk}, or on one that "
                "computes otherwise (TEACHER_IMAGE_PRECISION, TEACHER_JPEG_DRAFT); train it again",
                field="model",
            )
        head_digest = str(record["head"])
        arrays = unpack_arrays(self._blobs.get(project, head_digest), what="head")
        classes = record["classes"]
        if not {"weight", "bias"} <= set(arrays) or not isinstance(classes, list):
            raise InvalidInput(f"model {model_id}: its head is not complete", field="model")
        head = LinearHead(
            torch.from_numpy(arrays["weight"].copy()),
            torch.from_numpy(arrays["bias"].copy()),
            tuple(str(name) for name in classes),
        )
        return replace(
            backbone,
            classifier=with_head(model_id, backbone.classifier, head, head_digest),
            head=(arrays["weight"], arrays["bias"]),
            single_label=bool(record.get("single_label", True)),
            cross_fitted=_cross_fitted(arrays),
        )


def _is_language(model_id: str) -> Precondition:
    return Precondition(
        f"{model_id} is a language model; Classify needs an image classifier",
        differences={"kind": "MODEL_KIND_LANGUAGE_MODEL"},
    )


def _listed(entry: ImageModel) -> ListedModel:
    classes = () if isinstance(entry.classes, str) else entry.classes
    size_px = entry.input.size_px if entry.input else 0
    return ListedModel(entry.id, entry.licence, classes, size_px, entry.id)


def _names(found: object) -> tuple[str, ...]:
    return tuple(str(name) for name in found) if isinstance(found, list) else ()


def _head_bytes(served: ServedModel) -> int:
    known = sum(row.nbytes for row in served.cross_fitted.values())
    return served.classifier.size_bytes + known


def _cross_fitted(arrays: dict[str, Array]) -> dict[str, Array]:
    """Logits by image digest, from `crossfit_digests` [n, 32] uint8 and `crossfit_logits` [n,
    K]."""
    if not {"crossfit_digests", "crossfit_logits"} <= set(arrays):
        return {}
    digests = [bytes(row).hex() for row in arrays["crossfit_digests"]]
    return dict(zip(digests, arrays["crossfit_logits"].astype(np.float32), strict=True))
