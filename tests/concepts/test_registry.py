"""Encoders in memory, on a network small enough to see through."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from services.common.catalogue import Catalogue, ImageTextEncoder
from services.common.errors import NotFound, Precondition
from services.concepts import registry as registry_module
from services.concepts.model import EncoderModel
from services.concepts.registry import Registry
from services.concepts.settings import ConceptsSettings
from services.torch_common.preprocess import Preprocessing
from tests.torch_common.other_threads import one_thread_elsewhere

EDGE = 16


class Mean(nn.Module):
    """The mean colour as an embedding; with tokens, the mean of every cell of a 4 x 4 grid."""

    def __init__(self, *, tokens: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3, 1000))
        self.tokens = tokens
        self.batches: list[int] = []

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        self.batches.append(len(images))
        whole = images.mean(dim=(2, 3)) + 2
        if not self.tokens:
            return whole
        cells = nn.functional.avg_pool2d(images, EDGE // 4) + 2
        return whole, cells.permute(0, 2, 3, 1)


def entry(encoder_id: str) -> ImageTextEncoder:
    return ImageTextEncoder.model_validate(
        {
            "id": encoder_id,
            "kind": "image-text-encoder",
            "licence": "none",
            "loader": "open_clip",
            "architecture": "ViT-B-32",
        }
    )


def model(registry: Registry, of: ImageTextEncoder) -> EncoderModel:
    return EncoderModel(
        id=of.id,
        weights_digest="0" * 64,
        preprocessing=Preprocessing(EDGE),
        network=Mean(tokens=True),
        visual=Mean(tokens=False),
        embedding_dim=3,
        size_bytes=1000,
        map_shape=(4, 4),
        encode_texts=lambda texts: torch.ones(len(texts), 3),
        reference_mean=np.zeros(3, np.float32),
        compute=registry._compute,
    )


@pytest.fixture
async def registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> AsyncIterator[Registry]:
    changes = getattr(request, "param", {})
    settings = ConceptsSettings(
        **{"cache_dir": tmp_path, "threads": 1, "preload": "kept", **changes}
    )
    made = Registry(settings, Catalogue([entry(x) for x in ("kept", "a", "b")], {}))
    monkeypatch.setattr(registry_module, "ensure_all", lambda *_: {})
    monkeypatch.setattr(registry_module, "load_model", lambda of, *_: model(made, of))
    yield made
    await made.close()


def names(registry: Registry) -> list[str]:
    return [one.model_id for one in registry.loaded_models()]


@pytest.mark.parametrize("registry", [{"max_models_bytes": 2000}], indirect=True)
async def test_encoders_leave_for_others_but_not_the_preloaded(registry: Registry) -> None:
    for encoder_id in ("kept", "a", "b"):
        assert (await registry.load("default", encoder_id)).users == 0
    assert names(registry) == ["kept", "b"]
    assert registry.loaded("a") is None
    assert await registry.unload("default", "b")
    assert not await registry.unload("default", "b")
    with pytest.raises(Precondition, match="stays"):
        await registry.unload("default", "kept")
    with pytest.raises(NotFound):
        await registry.unload("default", "nobody")


async def test_concurrent_first_calls_load_once_and_compute(registry: Registry) -> None:
    image = Image.new("RGB", (20, 30), (255, 127, 0))

    async def embed() -> np.ndarray:
        async with registry.use("a") as served:
            return (await served.images.submit([served.model.square(image)]))[0].result

    rows = await asyncio.gather(*(embed() for _ in range(5)))
    want = np.array([3, 2, 1], np.float32)
    for row in rows:
        assert row.dtype == np.float16
        np.testing.assert_allclose(row, want / np.linalg.norm(want), atol=5e-3)
    assert names(registry) == ["a"]


@pytest.mark.parametrize("registry", [{"threads": 3}], indirect=True)
async def test_a_load_computes_with_the_services_threads(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def noting(of: ImageTextEncoder, *_: object) -> EncoderModel:
        seen.append(torch.get_num_threads())
        return model(registry, of)

    monkeypatch.setattr(registry_module, "load_model", noting)
    with one_thread_elsewhere() as seen:
        await registry.get("a")
    assert seen == [3]


async def test_regions_begin_with_the_whole_image(registry: Registry) -> None:
    square = torch.arange(EDGE * EDGE * 3, dtype=torch.int64).remainder(256).to(torch.uint8)
    async with registry.use("a") as served:
        item = square.reshape(EDGE, EDGE, 3)
        ((whole,), (dense,)) = await asyncio.gather(
            served.images.submit([item]), served.regions.submit([item])
        )
    np.testing.assert_array_equal(dense.result[0][0], whole.result)


@pytest.mark.parametrize("registry", [{"compile_mode": "default"}], indirect=True)
async def test_a_compiled_encoder_sees_few_shapes_and_all_of_them_at_load(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **how: function)
    async with registry.use("a") as served:
        visual = served.model.visual
        assert isinstance(visual, Mean)
        assert visual.batches == [1, 2, 4, 8, 16, 32]
        image = Image.new("RGB", (8, 8))
        items = [served.model.square(image)] * 5
        answers = await served.images.submit(items)
        assert visual.batches[-1] == 8
        assert len(answers) == 5
