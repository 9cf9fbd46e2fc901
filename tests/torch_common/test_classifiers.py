"""Networks by name: built for a size, refused with near names."""

from __future__ import annotations

import pytest
import torch

from services.common.errors import InvalidInput
from services.torch_common.classifiers import (
    SMALL_CNN,
    build_classifier,
    check_architecture,
    last_layer_names,
)


@pytest.mark.parametrize(
    ("architecture", "size_px", "last"),
    [
        (SMALL_CNN, 20, ("fc.weight", "fc.bias")),
        ("test_resnet", 32, ("fc.weight", "fc.bias")),
        ("test_vit", 64, ("head.weight", "head.bias")),
        ("test_efficientnet", 32, ("classifier.weight", "classifier.bias")),
    ],
)
def test_networks_take_their_size_and_name_their_last_layer(architecture, size_px, last) -> None:  # type: ignore[no-untyped-def]
    model = build_classifier(architecture, 5, size_px)
    images = torch.randn(2, 3, size_px, size_px)
    with torch.inference_mode():
        logits = model(images)
        features = model.forward_head(model.forward_features(images), pre_logits=True)
        again = model.get_classifier()(features)
    assert logits.shape == (2, 5)
    torch.testing.assert_close(again, logits)
    assert not model.training
    assert last_layer_names(model) == last


@pytest.mark.parametrize(
    ("asked", "near"), [("resnt18", "resnet18"), ("small_cnn", SMALL_CNN), ("zzqq", "list_models")]
)
def test_an_unknown_architecture_names_near_ones(asked: str, near: str) -> None:
    with pytest.raises(InvalidInput, match=near) as caught:
        check_architecture(asked)
    assert caught.value.field == "architecture"


def test_a_size_that_cannot_be_is_refused() -> None:
    with pytest.raises(InvalidInput, match="test_vit does not take 50 pixels") as caught:
        build_classifier("test_vit", 3, 50)
    assert caught.value.field == "input_size"
