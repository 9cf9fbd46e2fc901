"""Classifiers on real weights where the figures matter, on tiny random networks elsewhere."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from services.common.assets import DEFAULT_CACHE
from services.common.catalogue import ImageModel, load_catalogue
from services.common.errors import InvalidInput
from services.common.fetch import ensure
from services.common.images import decode
from services.gateway.builtin_data import iter_fruit
from services.teacher.backbones import load_classifier, preprocessing_of
from services.teacher.models import ImageClassifier, with_head
from services.torch_common.heads import LinearHead
from services.torch_common.lanes import Lanes
from services.torch_common.preprocess import Preprocessing
from services.torch_common.timm_models import build_timm

if TYPE_CHECKING:
    from transformers import ViTForImageClassification

CACHE = DEFAULT_CACHE.expanduser()
CLASSES = ("owl", "wren", "gull")


def entry(source: Path, **changes: object) -> ImageModel:
    fields: dict[str, object] = {
        "id": "tiny",
        "kind": "image-classifier",
        "loader": "timm",
        "licence": "none",
        "architecture": "test_resnet",
        "source": f"file:{source}",
        "classes": CLASSES,
        "input": {"size_px": 64, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
    }
    return ImageModel.model_validate(fields | changes)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("tiny") / "model.safetensors"
    save_file(build_timm("test_resnet", len(CLASSES)).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def tiny(weights: Path) -> ImageClassifier:
    return load_classifier(entry(weights), weights)


@pytest.fixture(scope="module")
def lite0() -> ImageClassifier:
    found = load_catalogue().image_model("efficientnet-lite0")
    return load_classifier(found, ensure(found, CACHE))


@pytest.fixture(scope="module")
def fruit() -> list[Image.Image]:
    path = ensure(load_catalogue().get("fruit"), CACHE)
    return [decode(photo.data) for photo, _ in zip(iter_fruit(path), range(16), strict=False)]


def noise(count: int, size: int = 64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return list(torch.randn(count, 3, size, size, generator=generator))


def test_outputs_equal_timms_own(tiny: ImageClassifier, weights: Path) -> None:
    torch.manual_seed(0)
    model = build_timm("test_resnet", len(CLASSES))
    batch = torch.stack(noise(5))
    logits, features = tiny.forward(batch)
    with torch.inference_mode():
        assert torch.allclose(logits, model(batch), atol=1e-5)
        assert torch.allclose(logits, model.get_classifier()(features), atol=1e-5)  # type: ignore[operator]
    assert features.shape == (5, tiny.feature_dim)
    assert (logits.dtype, features.dtype) == (torch.float32, torch.float32)


def test_warmup_checks_shapes(tiny: ImageClassifier) -> None:
    tiny.warmup(2)
    wrong = ImageClassifier("x", "0" * 64, ("a",), tiny._network, tiny.preprocessing)
    with pytest.raises(RuntimeError, match="expected"):
        wrong.warmup()


@pytest.mark.parametrize(
    "batch",
    [
        torch.zeros(1, 3, 65, 64),
        torch.zeros(3, 64, 64),
        torch.zeros(1, 1, 64, 64),
        torch.zeros(1, 3, 64, 64, dtype=torch.float16),
    ],
)
def test_other_shapes_are_refused(tiny: ImageClassifier, batch: torch.Tensor) -> None:
    with pytest.raises(InvalidInput, match="takes fp32"):
        tiny.forward(batch)


def test_padded_results_do_not_depend_on_neighbours(
    lite0: ImageClassifier, fruit: list[Image.Image]
) -> None:
    items = [lite0.preprocess(image) for image in fruit]
    alone = [lite0.forward_padded([item], 16) for item in items[:4]]
    together = lite0.forward_padded(items, 16)
    shuffled = lite0.forward_padded(items[::-1], 16)
    for index, one in enumerate(alone):
        assert torch.equal(one.logits[0].half(), together.logits[index].half())
        assert torch.equal(one.features[0].half(), shuffled.features[15 - index].half())


def test_padding_limits(tiny: ImageClassifier) -> None:
    assert tiny.forward_padded(noise(3), 4).logits.shape == (3, 3)
    for count in (0, 5):
        with pytest.raises(InvalidInput, match="do not fit"):
            tiny.forward_padded(noise(count), 4)


def test_digest_follows_weights_and_preprocessing(tmp_path: Path, weights: Path) -> None:
    base = load_classifier(entry(weights), weights).digest
    assert load_classifier(entry(weights), weights).digest == base
    spec = {"size_px": 64, "crop_pct": 0.9, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    assert load_classifier(entry(weights, input=spec), weights).digest != base
    torch.manual_seed(9)
    other = tmp_path / "model.safetensors"
    save_file(build_timm("test_resnet", len(CLASSES)).state_dict(), other)
    assert load_classifier(entry(other), other).digest != base


def test_misfitting_files_are_refused(tmp_path: Path, weights: Path) -> None:
    with pytest.raises(InvalidInput, match="size mismatch"):
        load_classifier(entry(weights, classes=("a", "b")), weights)
    with pytest.raises(InvalidInput, match="timm has no"):
        load_classifier(entry(weights, architecture="resnet_of_mine"), weights)
    pickled = tmp_path / "model.safetensors"
    torch.save({"x": torch.zeros(1)}, pickled)
    with pytest.raises(InvalidInput, match="not a safetensors file"):
        load_classifier(entry(pickled), pickled)


def test_backbone_without_classes(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(build_timm("test_resnet", 0).state_dict(), path)
    backbone = load_classifier(entry(path, kind="image-backbone", classes=()), path)
    backbone.warmup()
    assert len(backbone.classes) == backbone.feature_dim


def test_head_on_a_backbone(tiny: ImageClassifier) -> None:
    torch.manual_seed(2)
    head = LinearHead(torch.randn(2, tiny.feature_dim), torch.randn(2), ("red", "green"))
    model = with_head("mine", tiny, head, "1" * 64)
    model.warmup()
    batch = torch.stack(noise(2))
    logits, features = model.forward(batch)
    assert torch.equal(features, tiny.forward(batch).features)
    assert torch.allclose(logits, features @ head.weight.T + head.bias, atol=1e-5)
    assert model.classes == ("red", "green")
    assert len({model.digest, tiny.digest, with_head("mine", tiny, head, "2" * 64).digest}) == 3
    narrow = LinearHead(torch.randn(2, 3), torch.randn(2), ("red", "green"))
    with pytest.raises(InvalidInput, match="reads 3 features"):
        with_head("mine", tiny, narrow, "1" * 64)


def test_lite0_knows_fruit(lite0: ImageClassifier, fruit: list[Image.Image]) -> None:
    logits = lite0.forward_padded([lite0.preprocess(image) for image in fruit], 16).logits
    seen = {lite0.classes[int(i)] for i in logits.topk(5).indices.flatten()}
    assert seen & {"Granny Smith", "pomegranate", "orange", "lemon"}
    assert (lite0.feature_dim, len(lite0.classes)) == (1280, 1000)


def vit(folder: Path) -> ViTForImageClassification:
    """Write a tiny ViT of three classes that takes 32 pixels."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(3)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        id2label=dict(enumerate(CLASSES)),
    )
    made = ViTForImageClassification(config).eval()
    made.save_pretrained(folder)
    return made


@pytest.mark.parametrize("resample", [2, 3])
def test_transformers_folder(tmp_path: Path, resample: int) -> None:
    from transformers import ViTImageProcessor

    reference = vit(tmp_path)
    processor = ViTImageProcessor(size={"height": 32, "width": 32}, resample=resample)
    processor.save_pretrained(tmp_path)
    fields = {"loader": "transformers", "architecture": "", "classes": (), "input": None}
    model = load_classifier(entry(tmp_path, **fields), tmp_path)
    model.warmup()
    assert model.classes == CLASSES
    batch = torch.stack(noise(2, 32))
    logits, features = model.forward(batch)
    with torch.inference_mode():
        assert torch.allclose(logits, reference(batch).logits, atol=1e-5)
        assert torch.allclose(logits, reference.classifier(features), atol=1e-5)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    theirs = torch.as_tensor(processor(image, return_tensors="pt")["pixel_values"][0])
    assert (
        float((model.preprocess(image) - theirs).abs().max()) < 0.03
    )  # their resize is torchvision's


def test_transformers_features_stay_with_their_part_of_the_pass(tmp_path: Path) -> None:
    vit(tmp_path)
    fields = {"loader": "transformers", "architecture": "", "classes": ()}
    spec = {"size_px": 32, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    model = load_classifier(entry(tmp_path, input=spec, **fields), tmp_path)
    images = noise(2, 32)
    wanted = [model.forward_padded([image], 1).features[0] for image in images]
    mine = threading.local()
    first_seen, second_seen, first_done = (threading.Event() for _ in range(3))

    def pause(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        (first_seen if mine.first else second_seen).set()
        assert (second_seen if mine.first else first_done).wait(60)

    def part(items: list[torch.Tensor], size: int) -> list[torch.Tensor]:
        mine.first = items[0] is images[0]
        assert mine.first or first_seen.wait(60)
        features = list(model.forward_padded(items, size).features)
        if mine.first:
            first_done.set()
        return features

    # Both parts have been where features are seen before either takes its own.
    model._network._model.classifier.register_forward_pre_hook(pause)  # type: ignore[attr-defined]
    for got, want in zip(Lanes(2, least=1).run(part, images, 2), wanted, strict=True):
        assert torch.allclose(got, want, atol=1e-5)


def test_transformers_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    fields = {"loader": "transformers", "architecture": "", "classes": (), "input": None}
    with pytest.raises(InvalidInput, match=r"holds no \.safetensors"):
        load_classifier(entry(tmp_path, **fields), tmp_path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"size": {"height": 32, "width": 32}}, (32, 1.0, "squash")),
        (
            {"size": {"shortest_edge": 256}, "crop_size": 224, "do_center_crop": True},
            (224, 0.875, "center"),
        ),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, (224, 0.875, "center")),
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.875}, (384, 1.0, "squash")),
        ({"size": 224}, (224, 1.0, "center")),
    ],
)
def test_processors_are_understood(
    change: dict[str, object], expected: tuple[int, float, str]
) -> None:
    config = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 3, **change}
    got = preprocessing_of(config)
    size, crop, mode = expected
    assert got == Preprocessing(size, crop, "bicubic", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), mode)


def test_processors_that_are_not_understood() -> None:
    config = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    with pytest.raises(ValueError, match="not square"):
        preprocessing_of(config | {"size": {"height": 32, "width": 64}})
    with pytest.raises(ValueError, match="rescale_factor"):
        preprocessing_of(config | {"size": 224, "rescale_factor": 1.0})
