"""An encoder as the service sees it: pixels or words in, unit float16 rows out, one digest.

Rows are rounded to float16 before anyone uses them, cached or not. A model may be called from one
thread at a time.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from services.common.tensors import Array
from services.concepts.segments import (
    DEFAULT_SEGMENTS,
    block_means,
    cluster_tokens,
    segment_means,
)
from services.torch_common.compute import Compute
from services.torch_common.preprocess import Preprocessing

RegionRows = tuple[Array, Array]
"""One image's (float16 [R, D] unit rows: whole image, segments, blocks; uint8 [rows, columns]
segment of each
cell, from 1).
"""

SEGMENT_RULE = "ward-4-neighbours+3x3-blocks-1"
"""Name of the segment rule in `segments.py`; another rule gets another name, and other cache keys.
"""


@dataclass(frozen=True)
class EncoderModel:
    """A network with its words, its preprocessing and its identity."""

    id: str
    weights_digest: str
    preprocessing: Preprocessing
    network: nn.Module
    """fp32 [B, 3, S, S] to (whole [B, D], tokens [B, rows, columns, D]), not normalised."""
    visual: nn.Module
    """The image tower alone: fp32 [B, 3, S, S] to [B, D], the same whole without tokens."""
    embedding_dim: int
    size_bytes: int
    """Of the weights of both towers."""
    map_shape: tuple[int, int]
    encode_texts: Callable[[list[str]], Tensor]
    """Texts to fp32 [n, D], each row independent of the others."""
    reference_mean: Array
    compute: Compute = Compute()

    @property
    def digest(self) -> str:
        """SHA-256 hex over weights, architecture and preprocessing."""
        more = self.compute.identity
        return _digest(["encoder", self.weights_digest, self.preprocessing.digest, *more])

    @property
    def region_digest(self) -> str:
        """SHA-256 hex of how regions are made."""
        return _digest(["regions", SEGMENT_RULE, DEFAULT_SEGMENTS, *self.map_shape])

    @property
    def onnx_key(self) -> str:
        """SHA-256 hex of what an ONNX export is made from, the exporter's version last."""
        return _digest(["onnx", self.digest, self.region_digest, 2])

    @torch.inference_mode()
    def images(self, batch: Tensor) -> list[Array]:
        """Embedding float16 [D] of each of [B, 3, S, S]; the same as row 0 of its regions."""
        return list(unit_rows(self._visual(self._on_device(batch)).float().cpu().numpy()))

    @torch.inference_mode()
    def regions(self, batch: Tensor, count: int) -> list[RegionRows]:
        """Regions of the first `count` images of [B, 3, S, S]; the rest is padding."""
        whole, tokens = self._dense(self._on_device(batch))
        cells = tokens[:count].float().cpu().numpy()
        labels = cluster_tokens(cells, DEFAULT_SEGMENTS)
        means = segment_means(cells, labels, int(labels.max()) + 1)
        parts = [whole[:count].float().cpu().numpy()[:, None], means, block_means(cells)]
        rows = unit_rows(np.concatenate(parts, axis=1))
        return [(row, cell + np.uint8(1)) for row, cell in zip(rows, labels, strict=True)]

    @torch.inference_mode()
    def texts(self, texts: list[str]) -> Array:
        """Embeddings float16 [texts, D]."""
        return unit_rows(self.encode_texts(texts).float().cpu().numpy())

    @property
    def decode_px(self) -> int:
        """Pixels that the edges of a decoded image must have at least; 0 means its own size."""
        return self.preprocessing.decode_px

    def square(self, image: Image.Image) -> Tensor:
        """uint8 [S, S, 3] of an RGB image, where the model computes. Cheap enough for a thread
        pool; holds no state."""
        return self.compute.stage(self.preprocessing.square(image))

    @torch.inference_mode()
    def batch(self, items: Sequence[Tensor], size: int) -> Tensor:
        """Images as `square` gives them, normalised, as [size, 3, S, S]; the rest is zeros.

        fp32 [3, S, S] that is normalised already serves too. Raises InvalidInput for others.
        """
        return self.compute.batch(items, size, self.preprocessing)

    def warmup(self, size: int) -> None:
        """Run both networks once on a black image in a batch of `size`, so that the first caller
        does not wait for lazy set-up."""
        edge = self.preprocessing.size_px
        black = self.compute.stage(torch.zeros((edge, edge, 3), dtype=torch.uint8))
        self.images(self.batch([black], size))
        self.regions(self.batch([black], size), 1)

    @functools.cached_property
    def _visual(self) -> Callable[[Tensor], Tensor]:
        return self.compute.compiled(self.visual)

    @functools.cached_property
    def _dense(self) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        return self.compute.compiled(self.network)

    def _on_device(self, batch: Tensor) -> Tensor:
        return self.compute.move(batch).contiguous(memory_format=torch.channels_last)


def unit_rows(rows: Array) -> Array:
    """Rows scaled to length one, rounded to float16; a row of zeros stays one."""
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.asarray((rows / np.maximum(norms, 1e-12)).astype(np.float16))


def _digest(parts: list[object]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
