"""The 1,000 ImageNet class names, one short unique name each, from torchvision's metadata."""

from __future__ import annotations

import functools


@functools.cache
def imagenet_class_names() -> tuple[str, ...]:
    """Names in the order of the usual 1,000 logits ("tench", ..., "toilet tissue")."""
    from torchvision.models import ResNet50_Weights

    names: list[str] = ResNet50_Weights.IMAGENET1K_V2.meta["categories"]
    return tuple(names)
