"""Boxes of regions: the encoder's crop, EXIF orientation and the map's cells, in shares."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from services.common.catalogue import InputSpec
from services.common.images import ImageError
from services.gateway.region_boxes import (
    WHOLE,
    Frame,
    frame_of,
    region_box,
    region_boxes,
    upright_size,
)

SPEC = InputSpec(size_px=100, crop_pct=0.8)


def jpeg(size: tuple[int, int], orientation: int) -> bytes:
    out, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size).save(out, "JPEG", exif=exif)
    return out.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_upright_size(orientation: int) -> None:
    expected = (30, 50) if orientation >= 5 else (50, 30)
    assert upright_size(jpeg((50, 30), orientation)) == expected


def test_no_image_has_no_size() -> None:
    with pytest.raises(ImageError):
        upright_size(b"text")


@pytest.mark.parametrize(
    ("size", "spec", "expected"),
    [
        ((200, 200), SPEC, (0.096, 0.096, 0.896, 0.896)),
        ((400, 200), SPEC, (0.3, 0.096, 0.7, 0.896)),
        ((200, 400), SPEC, (0.096, 0.3, 0.896, 0.7)),
        ((400, 200), InputSpec(size_px=100, mode="squash"), (0, 0, 1, 1)),
        ((400, 200), None, (0.25, 0, 0.75, 1)),
        ((1, 1), SPEC, (0.096, 0.096, 0.896, 0.896)),
    ],
)
def test_what_the_model_sees(
    size: tuple[int, int], spec: InputSpec | None, expected: tuple[float, ...]
) -> None:
    frame = frame_of(size, spec)
    got = (frame.left, frame.top, frame.right, frame.bottom)
    assert got == pytest.approx(expected, abs=1e-9)


def test_a_mark_lies_in_its_box() -> None:
    """Prepare a photo as the encoder does and look where a mark ended up."""
    photo = np.zeros((300, 600, 3), np.uint8)
    photo[120:180, 330:380] = 255
    spec, image = InputSpec(size_px=80, crop_pct=0.8), Image.fromarray(photo)
    square = image.resize((200, 100), Image.Resampling.BICUBIC).crop((60, 10, 140, 90))
    cells = np.asarray(square.convert("L")).reshape(8, 10, 8, 10).mean((1, 3)) > 1
    box = region_box(cells.astype(np.uint8), 1, frame_of((600, 300), spec))
    assert box.left <= 330 / 600 < 380 / 600 <= box.right
    assert box.top <= 120 / 300 < 180 / 300 <= box.bottom
    assert (box.right - box.left) * 600 < 50 + 3 * 30
    assert (box.bottom - box.top) * 300 < 60 + 3 * 30


def test_regions_without_cells_have_the_frame() -> None:
    boxes = region_boxes(np.array([[1, 1], [2, 2]], np.uint8), 4, WHOLE)
    shown = [(box.left, box.top, box.right, box.bottom) for box in boxes]
    assert shown == [(0, 0, 1, 1), (0, 0, 1, 0.5), (0, 0.5, 1, 1), (0, 0, 1, 1)]


def test_a_box_is_a_part_of_the_frame() -> None:
    box = Frame(0.2, 0.4, 0.6, 0.8).box(0, 0.5, 0.5, 1)
    got = (box.left, box.top, box.right, box.bottom)
    assert got == pytest.approx((0.2, 0.6, 0.4, 0.8))
