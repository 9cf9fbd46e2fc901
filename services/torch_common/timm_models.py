"""Build timm architectures without weights, with the variants that timm has no name for.

Importing this package has made torchvision, which timm imports, importable.
"""

from __future__ import annotations

import timm
from torch import nn


class UnknownArchitecture(ValueError):
    """timm has no architecture of that name."""


def _v1_stride(model: nn.Module) -> None:
    """The original ResNet: a stage's stride lies on the first 1x1 convolution, not on the 3x3."""
    for stage in (2, 3, 4):
        for conv, stride in (("conv1", (2, 2)), ("conv2", (1, 1))):
            layer = model.get_submodule(f"layer{stage}.0.{conv}")
            assert isinstance(layer, nn.Conv2d)
            layer.stride = stride


_VARIANTS = {"v1-stride": _v1_stride}


def build_timm(architecture: str, num_classes: int, variant: str = "") -> nn.Module:
    """A timm model in eval mode with random weights. Raises UnknownArchitecture, ValueError."""
    if not timm.is_model(architecture):
        near = timm.list_models(f"*{architecture.split('_')[0]}*")[:5]
        raise UnknownArchitecture(f"timm has no {architecture!r}; near names: {near}")
    if variant and variant not in _VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; there are {sorted(_VARIANTS)}")
    model: nn.Module = timm.create_model(architecture, pretrained=False, num_classes=num_classes)
    if variant:
        _VARIANTS[variant](model)
    return model.eval()
