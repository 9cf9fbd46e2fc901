"""Where a region lies in the photo that a person sees.

The encoder resizes an image and cuts a square out of its middle; the region map covers that
square. A box is given
in shares of the upright image, so that it fits whatever size the photo is shown at.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image
from stillhouse.gateway.v1 import students_pb2 as pb

from services.common import images
from services.common.blocks import block_bounds
from services.common.catalogue import Catalogue, ImageTextEncoder, InputSpec
from services.common.tensors import Array

_ORIENTATION = 0x0112
_ON_THEIR_SIDE = (5, 6, 7, 8)


@dataclass(frozen=True)
class Frame:
    """The part of the upright image that the model sees, in shares of its width and height."""

    left: float
    top: float
    right: float
    bottom: float

    def box(self, left: float, top: float, right: float, bottom: float) -> pb.RegionBox:
        """Return the box of a part of the frame; the arguments are shares of the frame."""
        width, height = self.right - self.left, self.bottom - self.top
        return pb.RegionBox(
            left=self.left + left * width,
            top=self.top + top * height,
            right=self.left + right * width,
            bottom=self.top + bottom * height,
        )


WHOLE = Frame(0.0, 0.0, 1.0, 1.0)


def input_of(catalogue: Catalogue, encoder_id: str) -> InputSpec | None:
    """Return how an encoder prepares images; None where this gateway's catalogue does not say."""
    if encoder_id not in catalogue:
        return None
    entry = catalogue.get(encoder_id)
    return entry.input if isinstance(entry, ImageTextEncoder) else None


def upright_size(data: bytes) -> tuple[int, int]:
    """Return (width, height) in pixels after EXIF orientation. Raises ImageError."""
    header = images.inspect(data)
    try:
        with Image.open(io.BytesIO(data), formats=images.FORMATS) as image:
            orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a damaged EXIF block counts as none, as it does in the decoder
        orientation = 1
    size = (header.width_px, header.height_px)
    return (size[1], size[0]) if orientation in _ON_THEIR_SIDE else size


def frame_of(size: tuple[int, int], spec: InputSpec | None) -> Frame:
    """Return what a model of `spec` sees of an image of (width, height) pixels.

    Without a spec: the largest square in the middle, which is what most encoders take.
    """
    if spec is not None and spec.mode == "squash":
        width = height = math.floor(spec.size_px / spec.crop_pct)
        side = spec.size_px
    else:
        side = spec.size_px if spec else min(size)
        short = math.floor(side / spec.crop_pct) if spec else side
        width, height = (max(short, int(short * one / min(size))) for one in size)
    left, top = round((width - side) / 2), round((height - side) / 2)
    return Frame(left / width, top / height, (left + side) / width, (top + side) / height)


def region_boxes(region_map: Array, regions: int, frame: Frame) -> list[pb.RegionBox]:
    """Return the boxes of regions 0 (all that the model sees), 1, ... of a [rows, columns] map.

    A region without a cell has the whole frame as its box.
    """
    return [region_box(region_map, region, frame) for region in range(regions)]


def region_box(region_map: Array, region: int, frame: Frame) -> pb.RegionBox:
    """Return the box of one region: the whole frame, a segment of the map, or a block behind
    them."""
    height, width = region_map.shape
    top, bottom, left, right = _cells(region_map, region)
    return frame.box(left / width, top / height, right / width, bottom / height)


def _cells(region_map: Array, region: int) -> tuple[int, int, int, int]:
    """Return (top, bottom, left, right) of a region, in cells of the map."""
    segments = int(region_map.max(initial=0))
    blocks = block_bounds(*region_map.shape)
    if 0 < region <= segments:
        rows, columns = np.nonzero(region_map == region)
        if len(rows):
            return int(rows.min()), int(rows.max()) + 1, int(columns.min()), int(columns.max()) + 1
    elif 0 <= region - segments - 1 < len(blocks):
        return blocks[region - segments - 1]
    return 0, region_map.shape[0], 0, region_map.shape[1]
