"""Dense tokens in the text space from one forward pass: one adapter per head type.

- Average pool and linear head (EfficientNet, ResNet in timm): the head is applied to every cell of
  the last map (after conv_head, bn2 and activation). Exact: a mean of linear images is the linear
  image of a mean.
- Vision transformer whose class token is the embedding: MaskCLIP (arXiv 2112.01071). A cell's token
  is what the last block's value and output projections make of it, without attention, residual and
  MLP.
- Vision transformer that averages its tokens: every token through the final norm and the
  projection; exact where the norm comes before the average.
- Attention-pool and MAP heads mix positions before the text space, so there are no cell tokens:
  `CropsHead` embeds the whole image and its four quarters instead, at the price of five passes.

Every other head is refused with `UnsupportedHead`. Nothing here normalises its results.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

_EXACT = 1e-4


class UnsupportedHead(TypeError):
    """The image tower's head has no adapter: cell tokens in the text space would be guesses."""


class DenseHead(nn.Module):
    """fp32 ``[B, 3, S, S]`` to (whole ``[B, D]``, tokens ``[B, h, w, D]``), not normalised."""

    exact = False
    """Whether the mean of an image's tokens is its whole-image embedding."""

    visual: Any

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual


class AveragePoolHead(DenseHead):
    """timm trunk with a global average pool, then at most dropout and one linear layer."""

    exact = True

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        trunk, head = self.visual.trunk, self.visual.head
        cells = trunk.forward_features(images)
        return head(trunk.forward_head(cells)), head(cells.permute(0, 2, 3, 1))


class ClassTokenHead(DenseHead):
    """open_clip transformer read at its class token; tokens by the value path of the last block."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        visual = self.visual
        before = visual._embeds(images)
        for block in visual.transformer.resblocks[:-1]:
            before = block(before)
        last = visual.transformer.resblocks[-1]
        pooled, _ = visual._pool(last(before))
        tokens = visual.ln_post(_values(last, before[:, 1:])) @ visual.proj
        return pooled @ visual.proj, _as_map(tokens, images, visual.patch_size)


class TokenAverageHead(DenseHead):
    """open_clip transformer that averages its tokens (exact where the norm comes first)."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__(visual)
        self.exact = not self.visual.final_ln_after_pool

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        visual = self.visual
        after = visual.transformer(visual._embeds(images))
        pooled, _ = visual._pool(after)
        tokens = visual.ln_post(after[:, 1:]) @ visual.proj
        return pooled @ visual.proj, _as_map(tokens, images, visual.patch_size)


class CropsHead(DenseHead):
    """Any tower: its four quarters, resized to the input size, stand in for a 2 x 2 map."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        batch, _, height, width = images.shape
        half_h, half_w = (height + 1) // 2, (width + 1) // 2
        corners = [
            (0, 0),
            (0, width - half_w),
            (height - half_h, 0),
            (height - half_h, width - half_w),
        ]
        crops = [images[:, :, top : top + half_h, left : left + half_w] for top, left in corners]
        views = [
            functional.interpolate(
                crop, size=(height, width), mode="bicubic", align_corners=False, antialias=True
            )
            for crop in crops
        ]
        embedded = self.visual(torch.cat([images, *views]))
        if isinstance(embedded, tuple):  # towers that return their tokens too
            embedded = embedded[0]
        embedded = embedded.reshape(5, batch, -1)
        return embedded[0], embedded[1:].transpose(0, 1).reshape(batch, 2, 2, -1)


def dense_head(visual: nn.Module) -> DenseHead:
    """The adapter for an open_clip image tower.

    Raises:
        UnsupportedHead: the tower has no class we know, or its pooling mixes positions in a way
            that no adapter follows.
    """
    kind = type(visual).__name__
    if kind == "TimmModel":
        return _timm_head(visual)
    if kind == "VisionTransformer":
        return _transformer_head(visual)
    if kind == "ModifiedResNet":
        return CropsHead(visual)
    raise UnsupportedHead(f"no dense adapter for an image tower of class {kind}")


def _transformer_head(visual: Any) -> DenseHead:
    if visual.attn_pool is not None:
        return CropsHead(visual)
    if not visual.transformer.batch_first or visual.proj is None:
        raise UnsupportedHead("a transformer without projection or with the sequence axis first")
    if visual.pool_type == "avg":
        return TokenAverageHead(visual)
    last = visual.transformer.resblocks[-1]
    if visual.pool_type != "tok" or not isinstance(
        getattr(last, "attn", None), nn.MultiheadAttention
    ):
        raise UnsupportedHead(
            f"a transformer with pool {visual.pool_type!r} and a custom last block"
        )
    return ClassTokenHead(visual)


def _timm_head(visual: Any) -> DenseHead:
    trunk = visual.get_submodule("trunk")
    names = [name for name, _ in visual.get_submodule("head").named_children()]
    if "pool" in names or type(getattr(trunk, "attn_pool", None)).__name__ == "AttentionPoolLatent":
        return CropsHead(visual)
    if any(name not in {"drop", "proj"} for name in names) or not _averages(trunk, visual):
        raise UnsupportedHead(
            f"{type(trunk).__name__} does not end in average pool and linear head"
        )
    return AveragePoolHead(visual)


def _averages(trunk: Any, visual: Any) -> bool:
    """Whether the trunk's head is the plain mean over the cells of its map: asked of the trunk
    itself.
    """
    device = next(trunk.parameters()).device
    generator = torch.Generator().manual_seed(0)
    height, width = visual.image_size
    images = torch.randn(1, 3, height, width, generator=generator).to(device)
    training = trunk.training
    with torch.inference_mode():
        trunk.eval()
        cells = trunk.forward_features(images)
        pooled = trunk.forward_head(cells) if cells.ndim == 4 else None
        trunk.train(training)
    if pooled is None or pooled.shape != cells.shape[:2]:
        return False
    mean = cells.mean(dim=(2, 3))
    return bool((pooled - mean).abs().max() <= _EXACT * mean.abs().max().clamp(min=1e-6))


def _values(block: Any, tokens: Tensor) -> Tensor:
    """Value and output projection of a block's attention for each token alone, fp32 ``[B, N,
    width]``.
    """
    attention = cast("nn.MultiheadAttention", block.attn)
    width = attention.embed_dim
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    value = functional.linear(
        block.ln_1(tokens), weight[2 * width :], None if bias is None else bias[2 * width :]
    )
    return cast("Tensor", block.ls_1(attention.out_proj(value)))


def _as_map(tokens: Tensor, images: Tensor, patch: tuple[int, int]) -> Tensor:
    rows, columns = images.shape[2] // patch[0], images.shape[3] // patch[1]
    return tokens.reshape(len(tokens), rows, columns, -1)
