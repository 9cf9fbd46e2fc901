"""Image classifiers behind one interface: photo in, logits and features out, identified by a
digest.

``backbones.py`` makes the networks; this module knows nothing of where they came from. A classifier
does not change once made, and may be called from several threads at a time.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor

from services.common.errors import InvalidInput
from services.torch_common.compute import Compute
from services.torch_common.heads import LinearHead
from services.torch_common.preprocess import Preprocessing


class Outputs(NamedTuple):
    """What a classifier says about B images, fp32 on the CPU."""

    logits: Tensor
    """[B, K]."""
    features: Tensor
    """[B, D]: the pooled vector that the last linear layer reads."""


class Network(Protocol):
    """The computation inside a classifier; several threads may call it at a time."""

    feature_dim: int
    size_bytes: int
    """Of its weights."""

    def __call__(self, batch: Tensor) -> Outputs:
        """Outputs for normalised [B, 3, H, W], B at least 1, on any device and of any float type;
        what is not as the network computes is converted."""
        ...


def identity(weights_digest: str, preprocessing: Preprocessing, *more: object) -> str:
    """SHA-256 hex over a model's weights, its preprocessing, and what else decides its outputs."""
    text = json.dumps([weights_digest, preprocessing.digest, *more], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class ImageClassifier:
    """A network with its preprocessing and class names.

    id: the catalogue's or the user's name for it. digest: SHA-256 hex over weights and
    preprocessing. classes: K names in the order of the logits. feature_dim: D.
    """

    def __init__(
        self,
        model_id: str,
        digest: str,
        classes: Sequence[str],
        network: Network,
        preprocessing: Preprocessing,
        compute: Compute | None = None,
    ) -> None:
        self.id = model_id
        self.digest = digest
        self.classes = tuple(classes)
        self.feature_dim = network.feature_dim
        self.preprocessing = preprocessing
        self.compute = compute or Compute()
        self._network = network

    @property
    def size_bytes(self) -> int:
        """Bytes of its weights."""
        return self._network.size_bytes

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height, width of one input."""
        size = self.preprocessing.size_px
        return 3, size, size

    def preprocess(self, image: Image.Image) -> Tensor:
        """fp32 [3, H, W] of an RGB image. Cheap enough for a thread pool; holds no state."""
        return self.preprocessing(image)

    def square(self, image: Image.Image) -> Tensor:
        """uint8 [H, W, 3] of an RGB image, where the model computes; for the thread pool too."""
        return self.compute.stage(self.preprocessing.square(image))

    @torch.inference_mode()
    def forward(self, batch: Tensor) -> Outputs:
        """Outputs for fp32 [B, 3, H, W], B >= 1. Raises InvalidInput for another shape or dtype."""
        shape = self.input_shape
        if batch.ndim != 4 or tuple(batch.shape[1:]) != shape or batch.dtype != torch.float32:
            raise InvalidInput(
                f"{self.id} takes fp32 [B, {shape[0]}, {shape[1]}, {shape[2]}], "
                f"not {batch.dtype} {list(batch.shape)}"
            )
        return self._network(batch)

    @torch.inference_mode()
    def forward_padded(self, items: Sequence[Tensor], batch_size: int) -> Outputs:
        """Outputs for up to ``batch_size`` images, computed at exactly that batch size.

        An item is what ``square`` or ``preprocess`` gives. Raises InvalidInput for others.

        The rest is filled with zeros and dropped. A forward pass gives other last bits at another
        batch size, so a job whose results must not depend on its neighbours runs everything at one.
        """
        batch = self.compute.batch(items, batch_size, self.preprocessing)
        logits, features = self._network(batch)
        return Outputs(logits[: len(items)].clone(), features[: len(items)].clone())

    def warmup(self, batch_size: int = 1) -> None:
        """Run once on a black image, so that the first caller does not wait for lazy set-up, and
        check the outputs.

        Raises RuntimeError when the network does not give finite [1, K] and [1, D].
        """
        size = self.preprocessing.size_px
        black = self.compute.stage(torch.zeros((size, size, 3), dtype=torch.uint8))
        logits, features = self.forward_padded([black], batch_size)
        wanted = ((1, len(self.classes)), (1, self.feature_dim))
        got = (tuple(logits.shape), tuple(features.shape))
        if got != wanted:
            raise RuntimeError(f"{self.id} gives shapes {got}, expected {wanted}")
        if not bool(torch.isfinite(logits).all() and torch.isfinite(features).all()):
            raise RuntimeError(f"{self.id} gives values that are not finite")


class _HeadNetwork:
    """A backbone's features under a linear head of our own."""

    def __init__(self, backbone: ImageClassifier, head: LinearHead) -> None:
        self.feature_dim = backbone.feature_dim
        self.size_bytes = head.weight.nbytes + head.bias.nbytes
        self._backbone = backbone._network
        self._head = head

    def __call__(self, batch: Tensor) -> Outputs:
        features = self._backbone(batch).features
        return Outputs(self._head(features), features)


def with_head(
    model_id: str, backbone: ImageClassifier, head: LinearHead, head_digest: str
) -> ImageClassifier:
    """A classifier made of a backbone and a linear head on its features.

    ``head_digest`` is the content digest of the head's tensors. Raises InvalidInput when the head
    was made for features of another length.
    """
    if head.feature_dim != backbone.feature_dim:
        raise InvalidInput(
            f"the head reads {head.feature_dim} features, "
            f"{backbone.id} gives {backbone.feature_dim}",
            field="head",
        )
    digest = hashlib.sha256(
        json.dumps([backbone.digest, head_digest, list(head.classes)]).encode()
    ).hexdigest()
    network = _HeadNetwork(backbone, head)
    return ImageClassifier(
        model_id, digest, head.classes, network, backbone.preprocessing, backbone.compute
    )
