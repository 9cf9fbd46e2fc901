"""Make an encoder from its catalogue entry, and what is computed once: head and reference mean.

Both lie in the cache beside the weights, under a key of what they were made from, so a second start
computes neither, and two machines of one kind get the same bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from services.common.catalogue import (
    Catalogue,
    ImageModel,
    ImageTextEncoder,
    InputSpec,
    TextEncoder,
)
from services.common.errors import InvalidInput, Precondition
from services.common.tensors import Array, pack_arrays, unpack_arrays
from services.common.weights import content_digest, file_sha256
from services.concepts import attributes, reference
from services.concepts.alignment import (
    ATTRIBUTE_WEIGHT,
    FEATURE_RIDGE,
    TEXT_RIDGE,
    Head,
    Rows,
    fit_head,
)
from services.concepts.concept_sets import built_in
from services.concepts.dense import UnsupportedHead
from services.concepts.encoder import Towers, install_head, open_clip_model, timm_clip
from services.concepts.model import EncoderModel
from services.concepts.segments import MAX_TOKENS
from services.torch_common.compute import Compute, size_of
from services.torch_common.fuse import fold_batch_norms
from services.torch_common.imagenet import imagenet_class_names
from services.torch_common.preprocess import Preprocessing

_RECIPE = ("bilinear-names-attributes-1", *map(str, (TEXT_RIDGE, FEATURE_RIDGE, ATTRIBUTE_WEIGHT)))
"""How a head is made, beside its towers, names and directions: part of its cache key."""
_TEXT_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt")


def load_model(
    entry: ImageTextEncoder,
    catalogue: Catalogue,
    paths: dict[str, Path],
    cache: Path,
    compute: Compute | None = None,
) -> EncoderModel:
    """The encoder of an entry whose files are at `paths`.

    Raises InvalidInput where files do not fit, Precondition where its head has no dense adapter.
    """
    loaded = load_towers(entry, catalogue, paths, cache)
    return from_towers(entry.id, loaded.towers, loaded.preprocessing, loaded.digest, cache, compute)


@dataclasses.dataclass(frozen=True)
class Loaded:
    """Two towers with their head, what the image tower is fed, and the digest of their weights."""

    towers: Towers
    preprocessing: Preprocessing
    digest: str


def load_towers(
    entry: ImageTextEncoder, catalogue: Catalogue, paths: dict[str, Path], cache: Path
) -> Loaded:
    """The open_clip model of an entry, as open_clip itself would run it. Raises as `load_model`."""
    try:
        if entry.architecture:
            return _of_architecture(entry, paths.get(entry.id))
        return _composed(entry, catalogue, paths, cache)
    except UnsupportedHead as error:
        raise Precondition(f"{entry.id}: {error}", differences={"head": str(error)}) from error
    except (ValueError, OSError, SafetensorError) as error:
        raise InvalidInput(f"{entry.id}: {str(error)[:600]}", field="encoder") from error


def from_towers(
    encoder_id: str,
    towers: Towers,
    preprocessing: Preprocessing,
    weights_digest: str,
    cache: Path,
    compute: Compute | None = None,
) -> EncoderModel:
    """The encoder of two towers, with its reference mean."""
    compute, network = compute or Compute(), towers.network
    # Batch norms fold into convolutions: the same function in fewer passes over memory.
    probe = torch.zeros(1, 3, towers.image_size, towers.image_size)
    network.visual = fold_batch_norms(network.visual, probe)
    # The text tower stays on the CPU: its rows are few, kept, and the same wherever images run.
    compute.place(network)
    # Where it was folded, the tower as it came is let go of.
    towers.clip.visual = network.visual
    bounded, map_shape = _within_limit(network, towers.map_shape)
    dim = towers.embedding_dim
    model = EncoderModel(
        id=encoder_id,
        weights_digest=weights_digest,
        preprocessing=compute.reads(preprocessing),
        network=bounded.eval(),
        visual=network.visual,
        embedding_dim=dim,
        size_bytes=size_of(towers.clip),
        map_shape=map_shape,
        encode_texts=towers.encode_texts,
        reference_mean=np.zeros(dim, np.float32),
        compute=compute,
    )
    key = _join(model.digest, model.region_digest, reference.RULE)
    path = cache / "encoders" / f"{key[:32]}-reference.safetensors"
    plain = dataclasses.replace(model, compute=dataclasses.replace(compute, compile_mode=""))
    return dataclasses.replace(
        model, reference_mean=reference.reference_mean(path, _regions_of(plain))
    )


class Coarse(nn.Module):
    """A dense network with its map averaged over blocks of cells: for maps too fine to cut."""

    def __init__(self, network: nn.Module, block: int) -> None:
        super().__init__()
        self.network, self.block = network, block

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        whole, tokens = self.network(images)
        grid = functional.avg_pool2d(
            tokens.permute(0, 3, 1, 2), self.block, ceil_mode=True, count_include_pad=False
        )
        return whole, grid.permute(0, 2, 3, 1)


def _within_limit(network: nn.Module, shape: tuple[int, int]) -> tuple[nn.Module, tuple[int, int]]:
    block = 1
    while math.ceil(shape[0] / block) * math.ceil(shape[1] / block) > MAX_TOKENS:
        block += 1
    if block == 1:
        return network, shape
    return Coarse(network, block), (math.ceil(shape[0] / block), math.ceil(shape[1] / block))


def _of_architecture(entry: ImageTextEncoder, path: Path | None) -> Loaded:
    """One of open_clip's architectures with its checkpoint."""
    if path is None:
        raise InvalidInput(
            f"{entry.id}: an architecture needs a source of weights", field="encoder"
        )
    file = _checkpoint(path)
    towers = open_clip_model(entry.architecture, file)
    spec = entry.input or _own_input(towers)
    digest = _join(entry.architecture, content_digest(file))
    return Loaded(towers, Preprocessing.from_spec(spec), digest)


def _checkpoint(path: Path) -> Path:
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    named = [file for file in files if file.name == "open_clip_model.safetensors"] or files
    if len(named) != 1:
        raise ValueError(f"{path.name}: one .safetensors is expected, {len(named)} are there")
    return named[0]


def _own_input(towers: Towers) -> InputSpec:
    """What open_clip says that the image tower is fed."""
    config: dict[str, Any] = cast("Any", towers.clip.visual).preprocess_cfg
    return InputSpec(
        size_px=towers.image_size,
        interpolation=config.get("interpolation", "bicubic"),
        mean=config["mean"],
        std=config["std"],
        mode="squash" if config.get("resize_mode") == "squash" else "center",
    )


def _composed(
    entry: ImageTextEncoder,
    catalogue: Catalogue,
    paths: dict[str, Path],
    cache: Path,
) -> Loaded:
    """A timm classifier's trunk and a sentence encoder, joined by the closed-form head."""
    vision, text = catalogue.get(str(entry.vision)), catalogue.get(str(entry.text))
    spec = entry.input or (vision.input if isinstance(vision, ImageModel) else None)
    if not isinstance(vision, ImageModel) or not isinstance(text, TextEncoder) or spec is None:
        raise ValueError("vision and text are not an image model with an input and a text encoder")
    state = load_file(paths[vision.id])
    towers = timm_clip(
        vision.architecture,
        state,
        paths[text.id],
        spec.size_px,
        embed_dim=entry.embed_dim or text.embed_dim,
        context_length=text.context_length,
    )
    trunk_digest = content_digest(paths[vision.id])
    digest = _join(trunk_digest, _folder_digest(paths[text.id]))
    names = imagenet_class_names() if vision.classes == "imagenet-1k" else vision.classes
    found = attributes.load(vision.architecture, trunk_digest)
    recipe = _join(digest, *_RECIPE, _digest_of(found), *names)
    head, head_digest = _head(
        cache / "encoders" / f"{recipe[:32]}-head.safetensors",
        lambda: _fit(state["classifier.weight"].double().numpy(), names, found, towers),
    )
    if entry.head_digest and head_digest != entry.head_digest:
        raise ValueError(
            f"the head has digest {head_digest}, the catalogue pins {entry.head_digest}"
        )
    install_head(towers.clip, head)
    return Loaded(towers, Preprocessing.from_spec(spec), _join(digest, head_digest))


def _fit(
    classes: Array, names: Sequence[str], found: attributes.Directions | None, towers: Towers
) -> Head:
    """The closed-form head: class vectors on their names, attribute directions on their phrases."""

    def encode(texts: list[str]) -> Array:
        return towers.encode_names(texts).double().numpy()

    rows = Rows(classes, encode(list(names)))
    if found is None:
        return fit_head(rows)
    origin = encode(list(built_in()["everyday"].words)).mean(axis=0)
    grounding = attributes.rows(found, encode, origin)
    return fit_head(rows, grounding, feature_mean=found.feature_mean)


def _head(path: Path, fit: Callable[[], Head]) -> tuple[Head, str]:
    """The projection between two towers and its digest, from the cache where it is there."""
    if not path.is_file():
        head = fit()
        data = pack_arrays({"weight": head.weight, "bias": head.bias})
        path.parent.mkdir(parents=True, exist_ok=True)
        # Of two processes that start at once, both compute the same; the last rename wins.
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_bytes(data)
        partial.replace(path)
    arrays = unpack_arrays(path.read_bytes(), what=path.name)
    if set(arrays) != {"weight", "bias"}:
        raise ValueError(f"{path.name} is not a head; remove it and start again")
    # Copies: what safetensors hands out may not be written to, which torch insists on.
    head = Head(np.array(arrays["weight"]), np.array(arrays["bias"]))
    return head, content_digest(path)


def _regions_of(model: EncoderModel) -> Callable[[list[Image.Image]], list[Array]]:
    def rows(images: list[Image.Image]) -> list[Array]:
        batch = model.batch([model.square(image) for image in images], len(images))
        return [rows for rows, _ in model.regions(batch, len(images))]

    return rows


def _folder_digest(folder: Path) -> str:
    """Digest of a sentence encoder: weights, configuration, tokenizer."""
    found = [folder / name for name in _TEXT_FILES if (folder / name).is_file()]
    return _join(content_digest(folder / "model.safetensors"), *map(file_sha256, found))


def _digest_of(found: attributes.Directions | None) -> str:
    if found is None:
        return "none"
    arrays = {"vectors": found.vectors, "feature_mean": found.feature_mean}
    words = "\n".join("|".join(phrases) for phrases in found.phrases)
    everyday = built_in()["everyday"].digest
    return _join(hashlib.sha256(pack_arrays(arrays)).hexdigest(), words, everyday)


def _join(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
