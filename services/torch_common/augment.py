"""Augmented views of photos as model inputs: the same crop and colours at any input size."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image

# Imported through this package, which makes torchvision importable beside CPU torch.
from torchvision.transforms.v2 import functional

from services.common.augmentation import Augmentation, View
from services.torch_common.preprocess import Preprocessing


def view_pixels(
    image: Image.Image,
    digest: str,
    view: int,
    augmentation: Augmentation,
    preprocessing: Preprocessing,
) -> Image.Image:
    """The RGB square that a model sees as view `view` of an RGB image, before normalising.

    `digest` is the SHA-256 of the encoded image, which must have been decoded at its full size:
    crops are places in it. A model's interpolation and size decide how the crop is resized, not
    which crop it is. Raises InvalidInput for a view out of range.
    """
    drawn = augmentation.view(digest, view, image.size)
    if drawn is None:
        return preprocessing.pixels(image)
    return _coloured(_cropped(image, drawn, preprocessing), drawn)


def _cropped(image: Image.Image, view: View, preprocessing: Preprocessing) -> Image.Image:
    side = preprocessing.size_px
    square = image.resize((side, side), preprocessing.resampling, box=view.box)
    return functional.horizontal_flip(square) if view.mirrored else square


def _coloured(image: Image.Image, view: View) -> Image.Image:
    steps: list[tuple[bool, Callable[[Image.Image], Image.Image]]] = [
        (view.brightness != 1, lambda x: functional.adjust_brightness(x, view.brightness)),
        (view.contrast != 1, lambda x: functional.adjust_contrast(x, view.contrast)),
        (view.saturation != 1, lambda x: functional.adjust_saturation(x, view.saturation)),
        (view.hue != 0, lambda x: functional.adjust_hue(x, view.hue)),
        (view.grey, lambda x: functional.to_grayscale(x, num_output_channels=3)),
    ]
    for wanted, change in steps:
        image = change(image) if wanted else image
    return image
