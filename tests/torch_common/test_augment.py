"""Views of images: always the same ones, the same at every input size, and within their policy."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from stillhouse.common.v1 import items_pb2

from services.common.augmentation import (
    MAX_VIEWS,
    POLICIES,
    Augmentation,
    read_augmentation,
)
from services.common.blobs import digest_of
from services.common.errors import InvalidInput
from services.torch_common.augment import view_pixels
from services.torch_common.preprocess import Preprocessing
from tests.support import photo

DIGEST = digest_of(photo(1))
SMALL, LARGE = Preprocessing(16), Preprocessing(64, crop_pct=0.875)
AUGMENTED = [name for name, policy in POLICIES.items() if policy is not None]


def image(seed: int = 1, size: tuple[int, int] = (160, 120)) -> Image.Image:
    return Image.open(io.BytesIO(photo(seed, size=size, form="PNG"))).convert("RGB")


def pixels(square: Image.Image) -> np.ndarray:
    return np.asarray(square).astype(np.float64)


@pytest.mark.parametrize("policy", AUGMENTED)
def test_a_view_depends_on_digest_view_policy_and_seed_alone(policy: str) -> None:
    augmentation = Augmentation(policy, views=4, seed=3)
    first = [view_pixels(image(), DIGEST, v, augmentation, SMALL).tobytes() for v in range(4)]
    torch.manual_seed(99)
    np.random.seed(99)
    again = [view_pixels(image(), DIGEST, v, augmentation, SMALL).tobytes() for v in (3, 1, 0, 2)]
    assert first == [again[at] for at in (2, 1, 3, 0)]
    assert len(set(first)) == 4
    other_seed = Augmentation(policy, views=4, seed=4)
    assert view_pixels(image(), DIGEST, 0, other_seed, SMALL).tobytes() != first[0]
    assert view_pixels(image(), "0" * 64, 0, augmentation, SMALL).tobytes() != first[0]
    more = Augmentation(policy, views=8, seed=3)
    assert view_pixels(image(), DIGEST, 2, more, SMALL).tobytes() == first[2]


@pytest.mark.parametrize("policy", AUGMENTED)
def test_both_input_sizes_see_the_same(policy: str) -> None:
    augmentation = Augmentation(policy, views=6, seed=0)
    views = [view_pixels(image(), DIGEST, v, augmentation, LARGE) for v in range(6)]
    for at, large in enumerate(views):
        small = pixels(view_pixels(image(), DIGEST, at, augmentation, SMALL))
        errors = [
            np.abs(small - pixels(one.resize((16, 16), Image.Resampling.BICUBIC))).mean()
            for one in views
        ]
        assert errors[at] < 4, policy
        assert int(np.argmin(errors)) == at
        assert large.size == (64, 64)


def test_views_stay_within_their_policy() -> None:
    width, height = 160, 120
    augmentation = Augmentation("strong", views=MAX_VIEWS, seed=1)
    views = [augmentation.view(DIGEST, v, (width, height)) for v in range(MAX_VIEWS)]
    for view in views:
        assert view is not None
        left, top, right, bottom = view.box
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        # A crop too wide or too high for the image is cut off there, and then holds less.
        if (right - left, bottom - top) != (width, height):
            assert (right - left) * (bottom - top) >= 0.14 * width * height
        assert all(0.6 <= x <= 1.4 for x in (view.brightness, view.contrast, view.saturation))
    mirrored = sum(view.mirrored for view in views if view)
    assert 0.3 * MAX_VIEWS < mirrored < 0.7 * MAX_VIEWS
    assert 0 < sum(view.grey for view in views if view) < 0.3 * MAX_VIEWS


RECORDED_BOX = (16.191084937700, 10.656060021067, 73.701817003907, 70.941137628617)
RECORDED_FLAGS = (True, False)
RECORDED_DIGEST = "ac56fbb0010d83f5bb72865dad9be9e0ee23e11c9c42e367ff92681e57b84ee1"


def test_recorded_numbers_do_not_change() -> None:
    """Stored teacher outputs belong to these very views."""
    view = Augmentation("strong", views=2, seed=7).view("ab" * 32, 1, (100, 80))
    assert view is not None
    np.testing.assert_allclose(view.box, RECORDED_BOX, atol=1e-9)
    assert (view.mirrored, view.grey) == RECORDED_FLAGS
    assert Augmentation("strong", 2, 7).digest == RECORDED_DIGEST


def test_without_a_policy_a_view_is_the_preprocessed_image() -> None:
    plain = Augmentation()
    assert view_pixels(image(), DIGEST, 0, plain, LARGE) == LARGE.pixels(image())
    assert torch.equal(LARGE(image()), LARGE.normalise(LARGE.pixels(image())))


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (200, 3)])
def test_extreme_images_have_views(size: tuple[int, int]) -> None:
    for view in range(4):
        augmentation = Augmentation("strong", views=4)
        square = view_pixels(
            Image.new("RGB", size, (9, 90, 200)), DIGEST, view, augmentation, SMALL
        )
        assert square.size == (16, 16)


def test_every_part_is_part_of_the_identity() -> None:
    base = Augmentation("strong", 2, 0)
    others = [
        Augmentation("flip_crop", 2, 0),
        Augmentation("strong", 3, 0),
        Augmentation("strong", 2, 1),
    ]
    assert len({one.digest for one in [base, *others]}) == 4
    assert Augmentation("strong", 2, 0).digest == base.digest


def test_messages_are_checked() -> None:
    message = items_pb2.Augmentation(policy="strong", views=8, seed=-5)
    assert read_augmentation(message) == Augmentation("strong", 8, -5)
    assert read_augmentation(items_pb2.Augmentation(policy="flip_crop")).views == 1
    for policy, views, field in [
        ("", 1, "policy"),
        ("mixup", 1, "policy"),
        ("strong", 65, "views"),
        ("strong", -1, "views"),
        ("none", 2, "views"),
    ]:
        with pytest.raises(InvalidInput) as caught:
            read_augmentation(items_pb2.Augmentation(policy=policy, views=views), field="a")
        assert caught.value.field == f"a.{field}"
    with pytest.raises(InvalidInput, match="view 2 of 2"):
        Augmentation("strong", 2).view(DIGEST, 2, (9, 9))
