from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from services.torch_common.fuse import fold_batch_norms
from services.torch_common.golden import golden_input
from services.torch_common.timm_models import build_timm


def settled(model: nn.Module) -> nn.Module:
    """Give batch norms statistics and weights of their own, so that folding them is not a no-op."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return model.eval()


def norms(model: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("tf_efficientnet_lite0", 0),
        ("test_efficientnet", 0),
        ("test_resnet", 1),  # its stem is nested, so the order there cannot be seen
    ],
)
def test_same_outputs_without_batch_norms(name: str, left: int) -> None:
    model = settled(build_timm(name, 10))
    before = norms(model)
    folded = fold_batch_norms(model, golden_input(64))
    assert before > 0
    assert norms(model) == before  # the original is untouched
    assert norms(folded) == left
    other = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        assert torch.allclose(folded(other), model(other), rtol=1e-3, atol=1e-3)


class Backwards(nn.Module):
    """Registers the norm after the convolution but runs it before."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(x))  # type: ignore[no-any-return]


def test_a_network_of_another_order_is_left_alone() -> None:
    model = settled(Backwards())
    assert fold_batch_norms(model, golden_input(8)) is model


def test_a_network_without_norms_is_left_alone() -> None:
    model = nn.Conv2d(3, 4, 1).eval()
    assert fold_batch_norms(model, golden_input(8)) is model
