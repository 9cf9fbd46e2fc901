"""Building encoders from local files, and what is refused."""

from __future__ import annotations

import services.torch_common  # noqa: F401  # before open_clip: makes torchvision importable

# isort: split
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from services.concepts.alignment import Head
from services.concepts.encoder import install_head, open_clip_model

pytestmark = pytest.mark.filterwarnings("ignore:No pretrained weights")

SMALL = "ViT-S-32-alt"


@pytest.fixture(scope="module")
def towers():
    return open_clip_model(SMALL, seed=1)


def test_random_weights_are_fixed_by_their_seed(towers):
    again = open_clip_model(SMALL, seed=1).clip.state_dict()
    other = open_clip_model(SMALL, seed=2).clip.state_dict()
    own = towers.clip.state_dict()
    assert all(torch.equal(own[name], again[name]) for name in own)
    assert not torch.equal(own["visual.proj"], other["visual.proj"])


def test_building_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    open_clip_model(SMALL, seed=9)
    assert torch.equal(torch.rand(3), expected)


def test_a_text_never_depends_on_its_neighbours(towers):
    words = ["red", "netted rind", "a very long " + "word " * 20]
    together = towers.encode_texts(words)
    alone = torch.cat([towers.encode_texts([word]) for word in words])
    assert torch.equal(together, alone)
    assert together.shape == (3, towers.embedding_dim)
    assert torch.allclose(together.norm(dim=1), torch.ones(3), atol=1e-5)


def test_a_checkpoint_replaces_the_weights(towers, tmp_path):
    path = tmp_path / "model.safetensors"
    state = {name: value.clone() for name, value in towers.clip.state_dict().items()}
    save_file(state, path)
    loaded = open_clip_model(SMALL, path, seed=7).clip.state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    state.pop("visual.proj")
    save_file(state, path)
    with pytest.raises(ValueError, match="do not fit"):
        open_clip_model(SMALL, path)


def test_unknown_architectures_and_downloads_are_refused():
    with pytest.raises(ValueError, match="no architecture"):
        open_clip_model("ViT-nothing")
    with pytest.raises(ValueError, match="nothing is downloaded"):
        open_clip_model("ViT-B-16-SigLIP")


def test_a_head_of_another_shape_is_refused():
    class Projection(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.visual = torch.nn.Module()
            self.visual.head = torch.nn.Module()
            self.visual.head.proj = torch.nn.Linear(4, 2)

    clip = Projection()
    head = Head(np.ones((2, 4), np.float32), np.full(2, 3, np.float32))
    install_head(clip, head)
    assert clip.visual.head.proj(torch.ones(1, 4)).tolist() == [[7.0, 7.0]]
    with pytest.raises(ValueError, match="is not"):
        install_head(clip, Head(np.ones((4, 2), np.float32), np.ones(4, np.float32)))
