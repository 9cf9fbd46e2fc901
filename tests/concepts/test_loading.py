"""Any open_clip architecture with a checkpoint is an encoder, and embeds as open_clip does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

import services.torch_common  # noqa: F401  # before open_clip and torchvision
from services.common.catalogue import load_catalogue
from services.common.errors import InvalidInput
from services.concepts.encoder import open_clip_model
from services.concepts.loading import Coarse, from_towers, load_model
from services.torch_common.preprocess import Preprocessing

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture
def quick_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three reference images serve where what is tested is not their mean."""
    monkeypatch.setattr("services.concepts.reference.COUNT", 3)


def test_vit_b_32_embeds_as_open_clip_does(tmp_path: Path, quick_reference: None) -> None:
    import open_clip

    towers = open_clip_model("ViT-B-32", seed=3)
    preprocessing = Preprocessing(224, mean=CLIP_MEAN, std=CLIP_STD)
    model = from_towers("vit", towers, preprocessing, "0" * 64, tmp_path)
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (4, 30, 40, 3), dtype=np.uint8)
    images = [Image.fromarray(one).resize((400, 300)) for one in noise]
    transform = open_clip.image_transform(224, is_train=False)
    texts = ["red", "a photo of a dog"]
    with torch.inference_mode():
        expected = towers.clip.encode_image(
            torch.stack([transform(image) for image in images]), normalize=True
        )
        words = towers.clip.encode_text(open_clip.get_tokenizer("ViT-B-32")(texts), normalize=True)
    batch = torch.stack([preprocessing(image) for image in images])
    rows, cells = zip(*model.regions(batch, len(images)), strict=True)
    for got, want in zip(model.images(batch), expected.half().numpy(), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-3)
    np.testing.assert_array_equal([one[0] for one in rows], model.images(batch))
    np.testing.assert_allclose(model.texts(texts), words.half().numpy(), atol=1e-3)
    assert cells[0].shape == model.map_shape == (7, 7)
    assert model.embedding_dim == 512
    assert len({one.tobytes() for one in rows}) == 4


def test_a_checkpoint_is_an_entry_of_a_catalogue(tmp_path: Path, quick_reference: None) -> None:
    towers = open_clip_model("ViT-S-32-alt", seed=5)
    state = {name: value.contiguous() for name, value in towers.clip.state_dict().items()}
    save_file(state, tmp_path / "mine.safetensors")
    (tmp_path / "mine.toml").write_text(
        '[entries.mine]\nkind = "image-text-encoder"\nloader = "open_clip"\nlicence = "none"\n'
        'architecture = "ViT-S-32-alt"\nsource = "file:mine.safetensors"\n'
    )
    catalogue = load_catalogue([tmp_path / "mine.toml"])
    entry = catalogue.get("mine")
    paths = {"mine": tmp_path / "mine.safetensors"}
    model = load_model(entry, catalogue, paths, tmp_path)  # type: ignore[arg-type]
    assert model.preprocessing.mean == pytest.approx(CLIP_MEAN)
    batch = torch.zeros(1, 3, 224, 224)
    with torch.inference_mode():
        want = towers.clip.encode_image(batch, normalize=True)[0].numpy()
    np.testing.assert_allclose(model.images(batch)[0], want, atol=1e-3)
    again = load_model(entry, catalogue, paths, tmp_path)  # type: ignore[arg-type]
    assert again.digest == model.digest

    del state["logit_scale"]
    save_file(state, tmp_path / "mine.safetensors")
    with pytest.raises(InvalidInput, match="logit_scale"):
        load_model(entry, catalogue, paths, tmp_path)  # type: ignore[arg-type]


class _Grid(nn.Module):
    """Whole and tokens of a known map."""

    def __init__(self, tokens: Tensor) -> None:
        super().__init__()
        self.tokens = tokens

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.tokens.mean(dim=(1, 2)), self.tokens


def test_a_map_too_fine_is_averaged_over_blocks() -> None:
    tokens = torch.arange(25.0).reshape(1, 5, 5, 1)
    whole, coarse = Coarse(_Grid(tokens), 2)(torch.zeros(1, 3, 8, 8))
    assert whole.item() == 12
    assert coarse[0, ..., 0].tolist() == [[3, 5, 6.5], [13, 15, 16.5], [20.5, 22.5, 24]]
