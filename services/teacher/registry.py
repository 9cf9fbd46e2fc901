"""Models by name: the catalogue's, and what a project's jobs have trained, heads and whole
classifiers; loaded when first asked for."""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from services.common.batching import Batcher
from services.common.blobs import BlobStore
from services.common.catalogue import Catalogue, ImageModel, LanguageModel
from services.common.classifier_records import KIND as TRAINED_CLASSIFIER
from services.common.classifier_records import ClassifierRecord
from services.common.errors import InvalidInput, NotFound, Precondition
from services.common.fetch import ensure
from services.common.model_records import KIND as LANGUAGE_MODEL
from services.common.tensors import Array, unpack_arrays
from services.teacher.backbones import load_classifier
from services.teacher.models import ImageClassifier, Outputs, with_head
from services.teacher.settings import TeacherSettings
from services.teacher.trained import load_trained
from services.torch_common.heads import LinearHead

Row = tuple[Array, Array]
"""One image's (logits [K] float32, features [D] float16)."""


class RowMemory:
    """Rows of job shards by image digest, least recently used forgotten first.

    Several heads on one trunk are usually asked about the same images; the trunk then runs once.
    Rows of online calls are not kept: their last bits depend on the batch they ran in.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._rows: OrderedDict[tuple[str, str], Row] = OrderedDict()

    def get(self, project: str, digest: str) -> Row | None:
        """Return an image's row, None where it is not remembered."""
        row = self._rows.get((project, digest))
        if row is not None:
            self._rows.move_to_end((project, digest))
        return row

    def put(self, project: str, digest: str, row: Row) -> None:
        """Remember a row."""
        self._rows[(project, digest)] = row
        while len(self._rows) > self._size:
            self._rows.popitem(last=False)


@dataclass(frozen=True, order=True)
class ListedModel:
    """What is known of a model before it is loaded; `classes` is empty for ImageNet's 1,000."""

    model_id: str
    licence: str
    classes: tuple[str, ...]
    size_px: int
    trunk: str


@dataclass(frozen=True)
class ServedModel:
    """A classifier with its queue. Models on the same trunk share the trunk's queue and its
    remembered rows."""

    classifier: ImageClassifier
    batcher: Batcher[Tensor, Row]
    remembered: RowMemory
    licence: str
    trunk: str
    head: tuple[Array, Array] | None = None
    """(weight [K, D], bias [K]) float32 of a head we trained; None answers with the trunk's own
    logits."""
    single_label: bool = True
    cross_fitted: dict[str, Array] = field(default_factory=dict)
    """Logits [K] by digest of the images a head was trained on, from the fold that did not see
    them."""

    def logits(self, row: Row) -> Array:
        """Return [K] float32. A head reads features rounded to float16, whether remembered or
        not."""
        if self.head is None:
            return row[0]
        weight, bias = self.head
        return np.asarray(weight @ row[1].astype(np.float32) + bias, np.float32)


class Registry:
    """Loads models off the event loop, each once, and keeps them."""

    def __init__(self, settings: TeacherSettings, catalogue: Catalogue, blobs: BlobStore) -> None:
        self._settings, self._catalogue, self._blobs = settings, catalogue, blobs
        self.executor = ThreadPoolExecutor(1, thread_name_prefix="model")
        """The one thread in which every model computes."""
        self._loaded: dict[tuple[str, str], ServedModel] = {}
        self._locks: dict[tuple[str, str], asyncio.Lock] = {}

    async def get(self, project: str, model_id: str) -> ServedModel:
        """Return a model, loading it where needed. Raises NotFound."""
        key = ("", model_id) if self._in_catalogue(model_id) else (project, model_id)
        async with self._locks.setdefault(key, asyncio.Lock()):
            if key not in self._loaded:
                await self._load(key)
        return self._loaded[key]

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

    def loaded(self, project: str) -> dict[str, str]:
        """Return the digests of the project's models in memory, by id."""
        return {
            model_id: served.classifier.digest
            for (owner, model_id), served in self._loaded.items()
            if owner in ("", project)
        }

    async def close(self) -> None:
        """Stop every queue."""
        await asyncio.gather(*(model.batcher.close() for model in self._loaded.values()))
        self.executor.shutdown(wait=True)

    def _in_catalogue(self, model_id: str) -> bool:
        return model_id in self._catalogue

    async def _load(self, key: tuple[str, str]) -> None:
        project, model_id = key
        if not project:
            if isinstance(self._catalogue.get(model_id), LanguageModel):
                raise _is_language(model_id)
            entry = self._catalogue.image_model(model_id)
            classifier = await asyncio.to_thread(self._from_catalogue, entry)
            self._loaded[key] = self._serve(classifier, entry.licence)
            return
        record = await asyncio.to_thread(self._record, project, model_id)
        if isinstance(record, ClassifierRecord):
            self._loaded[key] = await asyncio.to_thread(self._trained, project, model_id, record)
            return
        backbone = await self.get(project, str(record["backbone"]))
        self._loaded[key] = await asyncio.to_thread(
            self._with_head, project, model_id, record, backbone
        )

    def _serve(self, classifier: ImageClassifier, licence: str) -> ServedModel:
        batcher: Batcher[Tensor, Row] = Batcher(
            lambda items, size: _rows(classifier.forward_padded(items, size)),
            self.executor,
            name=classifier.id,
            max_batch=self._settings.max_batch,
            wait_ms=self._settings.batch_wait_ms,
            max_queue=self._settings.max_queue_items,
            shard_batch=self._settings.shard_batch,
        )
        memory = RowMemory(self._settings.remembered_rows)
        return ServedModel(classifier, batcher, memory, licence, classifier.id)

    def _from_catalogue(self, entry: ImageModel) -> ImageClassifier:
        path = ensure(entry, self._settings.cache_dir)
        return load_classifier(entry, path, self._settings.device)

    def _trained(self, project: str, model_id: str, record: ClassifierRecord) -> ServedModel:
        device = self._settings.device
        classifier = load_trained(model_id, record, self._blobs, project, device)
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
                f"model {model_id} stands on another version of {backbone.trunk}; train it again",
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


def _rows(outputs: Outputs) -> list[Row]:
    logits = outputs.logits.numpy()
    features = outputs.features.numpy().astype(np.float16)
    return list(zip(logits, features, strict=True))


def _cross_fitted(arrays: dict[str, Array]) -> dict[str, Array]:
    """Logits by image digest, from `crossfit_digests` [n, 32] uint8 and `crossfit_logits` [n,
    K]."""
    if not {"crossfit_digests", "crossfit_logits"} <= set(arrays):
        return {}
    digests = [bytes(row).hex() for row in arrays["crossfit_digests"]]
    return dict(zip(digests, arrays["crossfit_logits"].astype(np.float32), strict=True))
