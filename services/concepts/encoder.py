"""Build the two towers of an encoder with open_clip from local files; nothing is read elsewhere.

`timm_clip` puts a timm trunk, a closed-form head and a sentence encoder into a `CustomTextCLIP`
(`effl2-minilm`); `open_clip_model` builds any architecture that open_clip knows, with a safetensors
checkpoint or with seeded random weights. `Towers` is what the service needs of either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import services.torch_common  # noqa: F401  # before open_clip: makes torchvision importable

# isort: split
import open_clip
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from services.concepts.alignment import Head
from services.concepts.dense import DenseHead, dense_head

_TEXT_BATCH = 32
_TEXT_LENGTHS = (4, 6, 8, 12, 16)
"""Tokens of the shorter shapes; most words of a corpus are one or two tokens between two marks."""
_NAME_LENGTHS = (16,)
"""The same for the names that a head is fitted to."""


@dataclass(frozen=True)
class Towers:
    """An image tower with dense tokens and a text tower, in evaluation mode.

    Attributes:
        clip: the open_clip model itself, for comparison and export.
        network: fp32 ``[B, 3, S, S]`` to (whole ``[B, D]``, tokens ``[B, h, w, D]``), not
            normalised.
        encode_texts: texts to fp32 ``[n, D]`` unit rows; a row depends on its own text alone.
        encode_names: the same at the shapes that heads are made with: another shape gives other
            last bits, and with them another digest of the encoder.
        embedding_dim: D.
        image_size: S.
        map_shape: (h, w).
    """

    clip: nn.Module
    network: DenseHead
    encode_texts: Callable[[list[str]], Tensor]
    encode_names: Callable[[list[str]], Tensor]
    embedding_dim: int
    image_size: int
    map_shape: tuple[int, int]


def timm_clip(
    architecture: str,
    trunk: Mapping[str, Tensor],
    text_folder: Path,
    image_size: int,
    head: Head | None = None,
    *,
    embed_dim: int = 384,
    context_length: int = 64,
) -> Towers:
    """A `CustomTextCLIP` of a timm trunk and a local Hugging Face sentence encoder.

    Args:
        architecture: timm name, such as ``tf_efficientnet_lite2``.
        trunk: state dict of the timm model; a classifier in it is left out.
        text_folder: folder with safetensors weights, configuration and tokenizer.
        image_size: edge of the input square.
        head: the projection; None leaves it as initialised, for fitting it with this text tower.

    Raises:
        ValueError: weights that do not fit the architecture.
        UnsupportedHead: a trunk that does not end in an average pool.
    """
    vision = {
        "timm_model_name": architecture,
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "linear",
        "timm_proj_bias": True,
        "image_size": image_size,
    }
    text = {
        "hf_model_name": str(text_folder),
        "hf_tokenizer_name": str(text_folder),
        "hf_pooler_type": "mean_pooler",
        "hf_proj_type": None,
        "hf_model_pretrained": True,
        "context_length": context_length,
    }
    clip = open_clip.CustomTextCLIP(embed_dim, vision, text).eval()
    body = {name: value for name, value in trunk.items() if not name.startswith("classifier.")}
    _load(clip.visual.trunk, body, architecture)
    if head is not None:
        install_head(clip, head)
    tokenizer = open_clip.tokenizer.HFTokenizer(str(text_folder), context_length=context_length)
    encode, encode_names = (
        _bucketed(clip, tokenizer.tokenizer, context_length, lengths)
        for lengths in (_TEXT_LENGTHS, _NAME_LENGTHS)
    )
    return _towers(clip, encode, encode_names, embed_dim)


def open_clip_model(
    architecture: str,
    checkpoint: Path | None = None,
    *,
    seed: int = 0,
    text_folder: Path | None = None,
) -> Towers:
    """Any open_clip architecture, from a safetensors checkpoint or with random weights of a seed.

    Args:
        architecture: open_clip's name; ``-quickgelu`` variants and pooling order are honoured.
        checkpoint: safetensors file with the model's state dict.
        seed: of the random weights where there is no checkpoint.
        text_folder: local tokenizer folder, for an architecture whose tokenizer is not in the
            wheel.

    Raises:
        ValueError: an unknown architecture or weights that do not fit.
        UnsupportedHead: an image tower without dense adapter.
    """
    config = open_clip.get_model_config(architecture)
    if config is None:
        raise ValueError(f"open_clip knows no architecture {architecture!r}")
    if text_folder is None and any(name.startswith("hf_") for name in config["text_cfg"]):
        raise ValueError(f"{architecture} needs a local tokenizer folder: nothing is downloaded")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip = open_clip.create_model(architecture, pretrained=None, pretrained_hf=False).eval()
    if checkpoint is not None:
        _load(clip, load_file(checkpoint), architecture)
    length = int(config["text_cfg"].get("context_length", 77))
    if text_folder is None:
        tokenize = open_clip.get_tokenizer(architecture)
    else:
        tokenize = open_clip.tokenizer.HFTokenizer(str(text_folder), context_length=length)
    encode = _padded(clip, tokenize)
    return _towers(clip, encode, encode, int(config["embed_dim"]))


def install_head(clip: nn.Module, head: Head) -> None:
    """Copy a closed-form head into the projection of a `timm_clip` model."""
    projection = cast("nn.Linear", clip.get_submodule("visual.head.proj"))
    if tuple(projection.weight.shape) != head.weight.shape:
        raise ValueError(f"head {head.weight.shape} is not {tuple(projection.weight.shape)}")
    with torch.no_grad():
        projection.weight.copy_(torch.from_numpy(head.weight))
        projection.bias.copy_(torch.from_numpy(head.bias))


def _towers(
    clip: nn.Module,
    encode: Callable[[list[str]], Tensor],
    encode_names: Callable[[list[str]], Tensor],
    embed_dim: int,
) -> Towers:
    clip.requires_grad_(False)
    visual = cast("Any", clip.visual)
    network = dense_head(visual).eval()
    size = visual.image_size if isinstance(visual.image_size, int) else int(visual.image_size[0])
    with torch.inference_mode():
        _, tokens = network(torch.zeros(1, 3, size, size))
    shape = (tokens.shape[1], tokens.shape[2])
    return Towers(clip, network, encode, encode_names, embed_dim, size, shape)


def _load(module: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"the weights do not fit {what}: {error}") from error


def _padded(
    clip: nn.Module, tokenize: Callable[[list[str]], Tensor]
) -> Callable[[list[str]], Tensor]:
    """Texts in batches of one fixed shape, so that a row never depends on its neighbours."""

    @torch.inference_mode()
    def encode(texts: list[str]) -> Tensor:
        parts = []
        for start in range(0, len(texts), _TEXT_BATCH):
            part = texts[start : start + _TEXT_BATCH]
            ids = tokenize(part + [""] * (_TEXT_BATCH - len(part)))
            parts.append(cast("Any", clip).encode_text(ids, normalize=True)[: len(part)])
        return torch.cat(parts).float()

    return encode


def _bucketed(
    clip: nn.Module, tokenizer: Any, context_length: int, shorter: Sequence[int]
) -> Callable[[list[str]], Tensor]:
    """As `_padded`, with shorter shapes for words of few tokens: a row depends on its own text's
    length, and no token is computed in vain."""

    def at_length(length: int) -> Callable[[list[str]], Tensor]:
        def tokenize(texts: list[str]) -> Tensor:
            batch = tokenizer(
                texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
            )
            return cast("Tensor", batch["input_ids"])

        return _padded(clip, tokenize)

    shapes = [length for length in shorter if length < context_length] + [context_length]
    encoders = {length: at_length(length) for length in shapes}

    def encode(texts: list[str]) -> Tensor:
        counts = [len(ids) for ids in tokenizer(texts)["input_ids"]] if texts else []
        lengths = [next((one for one in shapes if count <= one), shapes[-1]) for count in counts]
        parts = {
            length: iter(
                encoders[length](
                    [t for t, own in zip(texts, lengths, strict=True) if own == length]
                )
            )
            for length in set(lengths)
        }
        return torch.stack([next(parts[length]) for length in lengths])

    return encode
