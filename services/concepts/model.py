"""An encoder as the service sees it: pixels or words in, unit float16 rows out, one digest.

Rows are rounded to float16 before anyone uses them, cached or not. A model may be called from one
thread at a time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from services.common.tensors import Array
from services.concepts.segments import (
    DEFAULT_SEGMENTS,
    block_means,
    cluster_tokens,
    segment_means,
)
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
    map_shape: tuple[int, int]
    encode_texts: Callable[[list[str]], Tensor]
    """Texts to fp32 [n, D], each row independent of the others."""
    reference_mean: Array
    device: str = "cpu"

    @property
    def digest(self) -> str:
        """SHA-256 hex over weights, architecture and preprocessing."""
        return _digest(["encoder", self.weights_digest, self.preprocessing.digest])

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
        """Embedding float16 [D] of each of fp32 [B, 3, S, S]; the same as row 0 of its regions."""
        return list(unit_rows(self.visual(self._on_device(batch)).float().cpu().numpy()))

    @torch.inference_mode()
    def regions(self, batch: Tensor, count: int) -> list[RegionRows]:
        """Regions of the first `count` images of fp32 [B, 3, S, S]; the rest is padding."""
        whole, tokens = self.network(self._on_device(batch))
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

    def _on_device(self, batch: Tensor) -> Tensor:
        return batch.to(self.device).contiguous(memory_format=torch.channels_last)


def unit_rows(rows: Array) -> Array:
    """Rows scaled to length one, rounded to float16; a row of zeros stays one."""
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.asarray((rows / np.maximum(norms, 1e-12)).astype(np.float16))


def _digest(parts: list[object]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
