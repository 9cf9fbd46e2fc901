"""Image classifiers by the name of their architecture: timm's, and a small one of our own.

Students are built, and later served, by this one function, so that both are the same network.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import timm
import torch
from torch import Tensor, nn

from services.common.errors import InvalidInput
from services.torch_common.timm_models import build_timm

SMALL_CNN = "small-cnn"
_WIDTHS = (16, 32, 64)


class SmallCnn(nn.Module):
    """Three convolutions that halve the image and a linear layer, with timm's interface.

    24,000 parameters and a few classes more: for tests and for the smallest machines.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_features = _WIDTHS[-1]
        stages: list[nn.Module] = []
        for before, after in zip((3, *_WIDTHS[:-1]), _WIDTHS, strict=True):
            stages += [
                nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            ]
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(self.num_features, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """[B, 64, h, w] of images [B, 3, H, W]."""
        found: Tensor = self.stages(x)
        return found

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits [B, K] of a map, or the vector [B, 64] that the last layer reads."""
        pooled = x.mean(dim=(2, 3))
        return pooled if pre_logits else self.get_classifier()(pooled)

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.fc

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, K] of images [B, 3, H, W]."""
        return self.forward_head(self.forward_features(x))


def check_architecture(architecture: str) -> None:
    """Raise InvalidInput with near names for an architecture that there is none of."""
    if architecture == SMALL_CNN or timm.is_model(architecture):
        return
    near = difflib.get_close_matches(architecture[:80], [SMALL_CNN, *timm.list_models()], n=4)
    hint = f"; near names: {', '.join(near)}" if near else "; timm.list_models() names them"
    raise InvalidInput(
        f"architecture: there is no {architecture[:80]!r}{hint}", field="architecture"
    )


def build_classifier(
    architecture: str, num_classes: int, size_px: int, variant: str = ""
) -> nn.Module:
    """A network with random weights in eval mode, for square inputs of `size_px`.

    Raises InvalidInput for an unknown architecture, and for a size that it cannot take.
    """
    check_architecture(architecture)
    if architecture == SMALL_CNN:
        return SmallCnn(num_classes).eval()
    try:
        model = build_timm(architecture, num_classes, variant)
        if hasattr(model, "set_input_size"):  # vision transformers have a grid of positions
            model.set_input_size(img_size=size_px)  # type: ignore[operator]
        with torch.inference_mode():
            outputs = model(torch.zeros(1, 3, size_px, size_px))
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        raise InvalidInput(
            f"input_size: {architecture} does not take {size_px} pixels: {str(error)[:200]}",
            field="input_size",
        ) from None
    if outputs.shape != (1, num_classes):
        raise InvalidInput(
            f"architecture: {architecture} gives {list(outputs.shape)}, not one logit per class",
            field="architecture",
        )
    return model


def last_layer_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the tensors of the layer that gives the logits."""
    last = model.get_classifier()  # type: ignore[operator]
    layers: Iterable[nn.Module] = last if isinstance(last, tuple | list) else [last]
    own = {id(tensor) for layer in layers for tensor in layer.parameters()}
    return tuple(name for name, tensor in model.named_parameters() if id(tensor) in own)
