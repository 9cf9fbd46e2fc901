"""Where a language model's files are: a catalogue entry's in the cache, a project's own out of the
blob store. Loads nothing.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from services.common.blobs import BlobStore, is_digest
from services.common.catalogue import Catalogue, LanguageModel
from services.common.errors import NotFound, Precondition
from services.common.fetch import ensure
from services.common.model_cache import folder_of
from services.common.model_records import KIND, LanguageModelRecord


@dataclass(frozen=True)
class ModelFiles:
    """A model's folder: a transformers folder, or a peft folder where there is a `base`."""

    model_id: str
    folder: Path
    licence: str
    key: str
    """Changes whenever the files could: of a project's model its record's digest."""
    base: str = ""
    """Last part of the name of the model under an adapter."""
    base_digest: str = ""
    """What `LoadedLanguageModel.digest` of the base was when the adapter was trained; empty where
    nobody knows."""


class ModelSource:
    """Finds models by id: the catalogue's first, then the project's. Blocking."""

    def __init__(self, catalogue: Catalogue, blobs: BlobStore, cache_dir: Path) -> None:
        self.catalogue, self.blobs, self.cache_dir = catalogue, blobs, cache_dir

    def record(self, project: str, model_id: str) -> LanguageModelRecord:
        """A project's record. Raises NotFound (with near names), or InvalidInput where it is none
        of a language model."""
        return LanguageModelRecord.from_bytes(self.reference(project, model_id))

    def reference(self, project: str, model_id: str) -> bytes:
        """The bytes that the project's model id points at now, or whose digest the id is. Raises
        NotFound with near names."""
        if is_digest(model_id):  # no name has so many letters
            return self.blobs.get(project, model_id)
        try:
            return self.blobs.get_ref(project, f"models/{model_id}")
        except NotFound:
            names = [*self.blobs.list_refs(project, "models"), *(e.id for e in self.catalogue)]
            raise _unknown(model_id, names) from None

    def check_language(self, project: str, model_id: str) -> None:
        """Raise NotFound for an unknown id, Precondition for a model of another kind."""
        if model_id in self.catalogue:
            kind: str = self.catalogue.get(model_id).kind
        else:
            kind = _kind(self.reference(project, model_id))
        if kind not in ("language-model", KIND):
            raise Precondition(
                f"{model_id} is a {kind}, not a language model", differences={"kind": kind}
            )

    def remote(self, model_id: str) -> LanguageModel | None:
        """The catalogue's entry where the model is in an OpenAI-compatible server, else None."""
        entry = self.catalogue.get(model_id) if model_id in self.catalogue else None
        return entry if isinstance(entry, LanguageModel) and entry.loader == "openai" else None

    def find(self, project: str, model_id: str) -> ModelFiles:
        """Bring a model's files into the cache and say where they are.

        Raises NotFound for an unknown id, FetchError, or InvalidInput for a damaged record.
        """
        if model_id in self.catalogue:
            entry = self.catalogue.language_model(model_id)
            return ModelFiles(model_id, self._fetched(entry), entry.licence, "", entry.base or "")
        data = self.reference(project, model_id)
        record = LanguageModelRecord.from_bytes(data)
        key = hashlib.sha256(data).hexdigest()
        folder = materialise(record, self.blobs, project, self.cache_dir)
        return ModelFiles(model_id, folder, record.licence, key, record.base, record.base_digest)

    def _fetched(self, entry: LanguageModel) -> Path:
        if entry.loader == "openai":
            raise NotFound(f"{entry.id!r} is on another server; it has no files", resource=entry.id)
        return ensure(entry, self.cache_dir)


def materialise(
    record: LanguageModelRecord, blobs: BlobStore, project: str, cache_dir: Path
) -> Path:
    """Copy a record's files out of the blob store into a folder of the cache named by their
    digests, once; returns it. Raises NotFound where a blob is missing."""
    folder = folder_of(cache_dir, project, record.files)
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as scratch:
        partial = Path(scratch, "files")
        partial.mkdir()
        for name, digest in record.files.items():
            _copy(blobs, project, digest, partial / name)
        try:
            os.replace(partial, folder)
        except OSError:
            if not folder.exists():  # else another process was first, with the same files
                raise
    return folder


def _copy(blobs: BlobStore, project: str, digest: str, target: Path) -> None:
    """Copy one blob in pieces; the stream checks its digest on the way. Raises DataLoss."""
    with blobs.open(project, digest) as source, target.open("xb") as out:
        shutil.copyfileobj(source, out, 1 << 20)


def _kind(data: bytes) -> str:
    try:
        return str(json.loads(data)["kind"])[:40]
    except (ValueError, KeyError, TypeError):
        return "damaged record"


def _unknown(model_id: str, names: list[str]) -> NotFound:
    near = difflib.get_close_matches(model_id, names, n=3, cutoff=0.5)
    hint = f"; did you mean {', '.join(near)}?" if near else ""
    return NotFound(f"no model {model_id!r}{hint}", resource=model_id)
