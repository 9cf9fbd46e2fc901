"""ONNX files of classifiers: what torch computes, at any batch, with pixels as input."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn

from services.common.errors import Unsupported
from services.student.classifier import onnx_export
from services.student.classifier.onnx_export import export_classifier
from services.torch_common.classifiers import build_classifier
from services.torch_common.preprocess import Preprocessing

CLASSES = ("a", "b", "c")


@pytest.mark.parametrize(
    ("architecture", "size_px"), [("small-cnn", 16), ("test_resnet", 32), ("test_vit", 32)]
)
@pytest.mark.parametrize("multi_label", [False, True])
def test_the_file_gives_what_the_network_gives(architecture, size_px, multi_label) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    module = build_classifier(architecture, 3, size_px)
    preprocessing = Preprocessing(size_px, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    data = export_classifier(module, preprocessing, CLASSES, multi_label=multi_label)
    assert data == export_classifier(module, preprocessing, CLASSES, multi_label=multi_label)
    model = onnx.load_from_string(data)
    facts = {one.key: one.value for one in model.metadata_props}
    assert json.loads(facts["classes"]) == list(CLASSES)
    assert facts["size_px"] == str(size_px)
    pixels = np.random.default_rng(1).integers(0, 256, (3, size_px, size_px, 3), dtype=np.uint8)
    logits, probabilities = ReferenceEvaluator(model).run(None, {"image": pixels})
    from PIL import Image

    batch = torch.stack([preprocessing.normalise(Image.fromarray(one)) for one in pixels])
    with torch.inference_mode():
        expected = module(batch)
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-3)
    wanted = expected.sigmoid() if multi_label else expected.softmax(1)
    np.testing.assert_allclose(probabilities, wanted.numpy(), atol=1e-4)


class _Odd(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.svdvals(x.mean(1))[:, :3]


def test_what_cannot_be_written_is_said() -> None:
    with pytest.raises(Unsupported, match="cannot be written"):
        export_classifier(_Odd(), Preprocessing(16), CLASSES, multi_label=False)


def test_a_file_that_disagrees_is_not_handed_out(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    run = onnx_export._run
    monkeypatch.setattr(onnx_export, "_run", lambda *given: [one + 0.1 for one in run(*given)])
    with pytest.raises(Unsupported, match="does not agree"):
        export_classifier(
            build_classifier("small-cnn", 3, 16), Preprocessing(16), CLASSES, multi_label=False
        )
