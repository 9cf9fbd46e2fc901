"""Where networks run, and that a batch holds the numbers that preprocessing gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from services.common.errors import InvalidInput
from services.common.settings import ModelSettings
from services.torch_common import compute as module
from services.torch_common.compute import Compute, default_precision, size_of
from services.torch_common.preprocess import Preprocessing

HOW = Preprocessing(24, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def photos(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(one) for one in rng.integers(0, 256, (count, 30, 40, 3), np.uint8)]


def gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)


@pytest.mark.parametrize("count", [1, 3, 4])
def test_a_batch_has_the_bits_of_preprocessing(count: int) -> None:
    images = photos(count)
    batch = Compute().batch([HOW.square(image) for image in images], 4, HOW)
    assert torch.equal(batch[:count], torch.stack([HOW(image) for image in images]))
    assert not batch[count:].any()
    assert batch.shape == (4, 3, 24, 24)
    assert batch.is_contiguous(memory_format=torch.channels_last)


def test_the_way_of_a_gpu_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    items = [HOW.square(image) for image in photos(3)]
    want = Compute().batch(items, 4, HOW)
    monkeypatch.setattr(Compute, "is_cuda", property(lambda self: True))
    assert torch.equal(Compute().batch(items, 4, HOW), want)


def test_normalised_images_and_squares_share_a_batch() -> None:
    first, second = photos(2)
    batch = Compute().batch([HOW(first), HOW.square(second)], 2, HOW)
    assert torch.equal(batch, torch.stack([HOW(first), HOW(second)]))


@pytest.mark.parametrize(
    "item",
    [
        torch.zeros(3, 24, 24, dtype=torch.uint8),
        torch.zeros(24, 24, 3),
        torch.zeros(3, 24, 24, dtype=torch.float64),
        torch.zeros(25, 25, 3, dtype=torch.uint8),
    ],
)
def test_other_items_are_refused(item: torch.Tensor) -> None:
    with pytest.raises(InvalidInput, match="takes uint8"):
        Compute().batch([item], 1, HOW)


def test_a_batch_must_hold_its_items() -> None:
    items = [HOW.square(image) for image in photos(3)]
    for some in (items, []):
        with pytest.raises(InvalidInput, match="do not fit"):
            Compute().batch(some, 2, HOW)


def test_half_precision_comes_last() -> None:
    (image,) = photos(1)
    batch = Compute(precision="float16").batch([HOW.square(image)], 1, HOW)
    assert torch.equal(batch[0], HOW(image).half())


def test_precision_by_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_precision("cpu") == default_precision("cuda") == "float32"
    for capability, wanted in (((9, 0), "float16"), ((7, 0), "float16"), ((6, 1), "float32")):
        gpu(monkeypatch, capability)
        assert default_precision("cuda:1") == wanted
        assert Compute.of(ModelSettings(device="cuda:1")).precision == wanted
    assert Compute.of(ModelSettings(device="cuda", image_precision="float32")).identity == ()


def test_identity_tells_what_changes_results() -> None:
    plain = Compute()
    assert plain.identity == Compute(compile_mode="default", device="cuda").identity == ()
    assert Compute(precision="bfloat16").identity == ("precision", "bfloat16")
    assert plain.reads(HOW) == HOW
    assert Compute(jpeg_draft=True).reads(HOW).digest != HOW.digest


def test_shapes_are_few_where_a_new_one_is_dear() -> None:
    free, compiled = Compute(), Compute(compile_mode="default")
    assert [free.shape_of(n, 24) for n in (1, 5, 24)] == [1, 5, 24]
    assert [compiled.shape_of(n, 24) for n in (1, 3, 5, 16, 17, 24, 30)] == [
        1,
        4,
        8,
        16,
        24,
        24,
        30,
    ]
    assert free.warm_shapes(32, 16) == [1]
    assert compiled.warm_shapes(24, 16) == [1, 2, 4, 8, 16, 24]
    assert Compute(device="cuda").warm_shapes(4, 16) == [1, 2, 4, 8, 16]


def test_every_online_shape_of_a_compiled_network_is_warm() -> None:
    compiled = Compute(compile_mode="reduce-overhead")
    for most, shard in ((32, 16), (24, 16), (8, 16), (1, 1)):
        warm = compiled.warm_shapes(most, shard)
        assert {compiled.shape_of(n, most) for n in range(1, most + 1)} <= set(warm)
        assert compiled.shape_of(shard, most) in warm


def test_what_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def compile_(function: object, **how: object) -> str:
        asked.update(how)
        return "compiled"

    monkeypatch.setattr(torch, "compile", compile_)
    assert Compute().compiled(photos) is photos
    assert Compute(compile_mode="max-autotune").compiled(photos) == "compiled"
    assert asked == {"mode": "max-autotune", "dynamic": False}


def test_a_network_is_placed() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 5))
    placed = Compute(precision="bfloat16").place(network)
    assert {p.dtype for p in placed.parameters()} == {torch.bfloat16}
    weight = next(placed.parameters())
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_sizes_count_shared_weights_once() -> None:
    layer = nn.Linear(8, 8, bias=False)
    twice = nn.Sequential(layer, nn.Linear(8, 8, bias=False))
    assert size_of(twice) == 2 * 8 * 8 * 4
    twice[1].weight = layer.weight
    assert size_of(twice) == 8 * 8 * 4


def test_on_a_cpu_nothing_is_staged() -> None:
    square = HOW.square(photos(1)[0])
    assert Compute().stage(square) is square
    Compute().forget()


def test_on_a_gpu_squares_are_copied_from_pinned_memory_on_the_threads_own_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steps: list[str] = []

    class Stream:
        def __enter__(self) -> None:
            steps.append("stream")

        def __exit__(self, *rest: object) -> None:
            steps.append("done")

        def synchronize(self) -> None:
            steps.append("wait")

    class Pinned:
        def to(self, device: str, *, non_blocking: bool) -> str:
            steps.append(f"{device} {non_blocking}")
            return "staged"

    class Square:
        def pin_memory(self) -> Pinned:
            steps.append("pin")
            return Pinned()

    made: list[str] = []
    monkeypatch.setattr(module, "_streams", type("Local", (), {})())
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: made.append(device) or Stream())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    for _ in range(2):
        assert Compute(device="cuda:1").stage(Square()) == "staged"  # type: ignore[arg-type]
    assert steps == ["stream", "pin", "cuda:1 True", "done", "wait"] * 2
    assert made == ["cuda:1"]
