"""Small pictures of regions: the photo upright, what lies outside the region dimmed."""

from __future__ import annotations

import io

from PIL import Image, ImageDraw, ImageOps, UnidentifiedImageError
from stillhouse.gateway.v1 import students_pb2

_SIDE_PX = 132
_DIM = 0.45
_ACCENT = (0, 114, 178)


def region(data: bytes, box: students_pb2.RegionBox) -> bytes | None:
    """Return a JPEG of the photo with the region (shares of width and height) bright and framed;
    None where the bytes are no image."""
    try:
        with Image.open(io.BytesIO(data)) as opened:
            opened.draft("RGB", (2 * _SIDE_PX, 2 * _SIDE_PX))
            upright = ImageOps.exif_transpose(opened).convert("RGB")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError, ValueError):
        return None
    upright.thumbnail((_SIDE_PX, _SIDE_PX), Image.Resampling.LANCZOS)
    corners = _corners(upright.size, box)
    shown = Image.blend(Image.new("RGB", upright.size, "white"), upright, _DIM)
    shown.paste(upright.crop(corners), corners[:2])
    frame = (corners[0], corners[1], corners[2] - 1, corners[3] - 1)
    ImageDraw.Draw(shown).rectangle(frame, outline=_ACCENT, width=2)
    buffer = io.BytesIO()
    shown.save(buffer, "JPEG", quality=82)
    return buffer.getvalue()


def _corners(size: tuple[int, int], box: students_pb2.RegionBox) -> tuple[int, int, int, int]:
    """Return pixel corners, never empty."""
    width, height = size
    left = round(min(max(box.left, 0.0), 1.0) * (width - 1))
    top = round(min(max(box.top, 0.0), 1.0) * (height - 1))
    right = max(round(min(box.right, 1.0) * width), left + 1)
    bottom = max(round(min(box.bottom, 1.0) * height), top + 1)
    return left, top, right, bottom
