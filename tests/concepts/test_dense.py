"""Dense tokens against plain reference implementations, one for each head type, and refusals."""

from __future__ import annotations

import math

import services.torch_common  # noqa: F401  # before open_clip: makes torchvision importable

# isort: split
import open_clip
import pytest
import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch.nn import functional

from services.concepts.dense import (
    AveragePoolHead,
    ClassTokenHead,
    CropsHead,
    TokenAverageHead,
    UnsupportedHead,
    dense_head,
)
from services.concepts.encoder import open_clip_model

pytestmark = pytest.mark.filterwarnings("ignore:No pretrained weights")


def seeded(build):
    torch.manual_seed(0)
    return build().eval()


def small_vit(**changes):
    settings = {"image_size": 32, "patch_size": 8, "width": 48, "layers": 3, "heads": 4}
    return seeded(lambda: VisionTransformer(mlp_ratio=2.0, output_dim=20, **(settings | changes)))


def norm(x, weight, bias):
    mean = x.mean(dim=-1, keepdim=True)
    return (x - mean) / torch.sqrt(
        ((x - mean) ** 2).mean(dim=-1, keepdim=True) + 1e-5
    ) * weight + bias


def reference_tokens(state, images, patch, heads, gelu):
    """A CLIP image tower from its state dict alone, up to MaskCLIP's tokens of the last block."""
    width = state["conv1.weight"].shape[0]
    cells = images.unfold(2, patch, patch).unfold(3, patch, patch)
    batch, _, rows, columns = cells.shape[:4]
    cells = cells.permute(0, 2, 3, 1, 4, 5).reshape(batch, rows * columns, -1)
    x = cells @ state["conv1.weight"].reshape(width, -1).T
    x = torch.cat([state["class_embedding"].expand(batch, 1, -1), x], dim=1)
    x = x + state["positional_embedding"]
    x = norm(x, state["ln_pre.weight"], state["ln_pre.bias"])
    layers = 1 + max(int(key.split(".")[2]) for key in state if key.startswith("transformer."))
    for layer in range(layers):
        part = {
            key.split(".", 3)[3]: value
            for key, value in state.items()
            if key.startswith(f"transformer.resblocks.{layer}.")
        }
        h = norm(x, part["ln_1.weight"], part["ln_1.bias"])
        q, k, v = (h @ part["attn.in_proj_weight"].T + part["attn.in_proj_bias"]).chunk(3, dim=-1)
        if layer == layers - 1:
            v = v[:, 1:] @ part["attn.out_proj.weight"].T + part["attn.out_proj.bias"]
            out = norm(v, state["ln_post.weight"], state["ln_post.bias"]) @ state["proj"]
            return out.reshape(batch, rows, columns, -1)
        q, k, v = (t.reshape(batch, -1, heads, width // heads).transpose(1, 2) for t in (q, k, v))
        weights = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(width // heads), dim=-1)
        mixed = (weights @ v).transpose(1, 2).reshape(batch, -1, width)
        x = x + mixed @ part["attn.out_proj.weight"].T + part["attn.out_proj.bias"]
        h = norm(x, part["ln_2.weight"], part["ln_2.bias"])
        h = gelu(h @ part["mlp.c_fc.weight"].T + part["mlp.c_fc.bias"])
        x = x + h @ part["mlp.c_proj.weight"].T + part["mlp.c_proj.bias"]
    raise AssertionError("no block")


@pytest.mark.parametrize("quick", [False, True])
@torch.inference_mode()
def test_class_token_transformers_follow_maskclip(quick):
    act = open_clip.transformer.QuickGELU if quick else torch.nn.GELU
    visual = small_vit(act_layer=act)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    head = dense_head(visual)
    assert isinstance(head, ClassTokenHead)
    whole, tokens = head(images)
    gelu = (lambda x: x * torch.sigmoid(1.702 * x)) if quick else functional.gelu
    expected = reference_tokens(visual.state_dict(), images, 8, 4, gelu)
    torch.testing.assert_close(whole, visual(images))
    torch.testing.assert_close(tokens, expected, atol=2e-5, rtol=1e-4)


@torch.inference_mode()
def test_vit_b_32_whole_and_tokens_in_fp16():
    towers = open_clip_model("ViT-B-32", seed=3)
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    whole, tokens = towers.network(images)
    expected = reference_tokens(towers.clip.visual.state_dict(), images, 32, 12, functional.gelu)
    direct = towers.clip.encode_image(images)
    assert towers.map_shape == (7, 7)
    for found, wanted in ((whole, direct), (tokens, expected)):
        found, wanted = (functional.normalize(t, dim=-1) for t in (found, wanted))
        assert float((found.half().float() - wanted).abs().max()) < 1e-3


@pytest.mark.parametrize(("late_norm", "exact"), [(False, True), (True, False)])
@torch.inference_mode()
def test_token_averages_honour_the_order_of_norm_and_pool(late_norm, exact):
    visual = small_vit(pool_type="avg", final_ln_after_pool=late_norm)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    head = dense_head(visual)
    assert isinstance(head, TokenAverageHead)
    assert head.exact is exact
    whole, tokens = head(images)
    torch.testing.assert_close(whole, visual(images))
    same = torch.allclose(tokens.mean(dim=(1, 2)), whole, atol=1e-5)
    assert same is exact


@pytest.mark.parametrize("trunk", ["tf_efficientnet_lite0", "resnet18"])
@torch.inference_mode()
def test_average_pools_are_exact(trunk):
    visual = seeded(lambda: TimmModel(trunk, 24, image_size=96, pool="", proj_bias=True))
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    head = dense_head(visual)
    assert isinstance(head, AveragePoolHead)
    whole, tokens = head(images)
    assert tokens.shape == (2, 3, 3, 24)
    torch.testing.assert_close(whole, visual(images))
    torch.testing.assert_close(tokens.mean(dim=(1, 2)), whole, atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_attention_pools_fall_back_to_quarters():
    visual = small_vit(attentional_pool=True, attn_pooler_heads=4)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    head = dense_head(visual)
    assert isinstance(head, CropsHead)
    whole, tokens = head(images)
    assert tokens.shape[:3] == (2, 2, 2)
    torch.testing.assert_close(whole, visual(images), atol=1e-5, rtol=1e-4)
    lower_right = functional.interpolate(
        images[:, :, 16:, 16:], size=(32, 32), mode="bicubic", align_corners=False, antialias=True
    )
    torch.testing.assert_close(tokens[:, 1, 1], visual(lower_right), atol=1e-5, rtol=1e-4)


def test_other_heads_are_refused():
    convnext = seeded(lambda: TimmModel("convnext_atto", 24, image_size=64, pool="", proj="linear"))
    with pytest.raises(UnsupportedHead, match="ConvNeXt"):
        dense_head(convnext)
    with pytest.raises(UnsupportedHead, match="Linear"):
        dense_head(torch.nn.Linear(2, 2))
    custom = small_vit(block_type="custom", scale_heads=True)
    with pytest.raises(UnsupportedHead, match="custom"):
        dense_head(custom)
