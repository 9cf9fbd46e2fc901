"""Decode photos from untrusted bytes into 8-bit RGB, with bounded time and memory.

The sizes are checked on the encoded bytes and on the header before any pixel is decoded. What comes
out is always RGB with the EXIF orientation applied: alpha is laid on white, 16 bit is scaled,
palettes and CMYK are converted, of an animation the first frame is taken. Colour profiles are not
applied.
"""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from services.common.errors import InvalidInput

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
Box = tuple[float, float, float, float]
"""Left, top, right, bottom as shares (0 to 1) of the upright image."""
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)

Reason = Literal[
    "IMAGE_EMPTY",
    "IMAGE_TOO_MANY_BYTES",
    "IMAGE_UNKNOWN_FORMAT",
    "IMAGE_TOO_MANY_PIXELS",
    "IMAGE_TOO_ELONGATED",
    "IMAGE_DAMAGED",
]


class ImageError(InvalidInput):
    """An image cannot be used. ``reason`` is one of ``Reason``; the message is for people."""

    def __init__(self, message: str, reason: Reason) -> None:
        super().__init__(message, field="image")
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class Limits:
    """What is refused before decoding."""

    max_bytes: int = 16 << 20
    """Of the encoded image."""
    max_pixels: int = 64_000_000
    """Width times height; decoding takes up to eight bytes a pixel."""
    max_elongation: int = 100
    """Longer over shorter edge: resizing the short edge of a thread-like image would make a huge
    one.
    """


DEFAULT_LIMITS = Limits()


@dataclasses.dataclass(frozen=True)
class Header:
    """What an image's header says, before orientation."""

    width_px: int
    height_px: int
    format: str


def _open(data: bytes, limits: Limits) -> Image.Image:
    """Read the header only, and refuse by it."""
    if not data:
        raise ImageError("the image is empty", "IMAGE_EMPTY")
    if len(data) > limits.max_bytes:
        raise ImageError(
            f"the image has {len(data):,} bytes, the limit is {limits.max_bytes:,}",
            "IMAGE_TOO_MANY_BYTES",
        )
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except _BOMBS as error:
        raise ImageError(
            f"the image has more than {limits.max_pixels:,} pixels", "IMAGE_TOO_MANY_PIXELS"
        ) from error
    except UnidentifiedImageError as error:
        known = ", ".join(FORMATS)
        raise ImageError(f"the bytes are none of {known}", "IMAGE_UNKNOWN_FORMAT") from error
    except Exception as error:  # Pillow's parsers raise almost any type on broken headers
        raise ImageError(f"the image's header is damaged: {error}", "IMAGE_DAMAGED") from error
    _check_size(image.size, limits)
    return image


def _check_size(size: tuple[int, int], limits: Limits) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"the image is {width} x {height} pixels", "IMAGE_DAMAGED")
    if width * height > limits.max_pixels:
        raise ImageError(
            f"the image is {width} x {height} pixels, the limit is {limits.max_pixels:,} in all",
            "IMAGE_TOO_MANY_PIXELS",
        )
    if max(size) > limits.max_elongation * min(size):
        raise ImageError(
            f"the image is {width} x {height} pixels: too elongated", "IMAGE_TOO_ELONGATED"
        )


def inspect(data: bytes, limits: Limits = DEFAULT_LIMITS) -> Header:
    """Check the limits by the header and say what it holds; the pixels may still be damaged.

    Raises ImageError.
    """
    with _open(data, limits) as image:
        return Header(image.width, image.height, image.format or "")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 where there is none or the EXIF block is damaged."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a photo with a broken EXIF block is still a photo
        return 1
    return value if isinstance(value, int) else 1


def _sixteen_bit(image: Image.Image) -> Image.Image:
    """Scale 0..65535 to 0..255; Pillow's own conversion would clip or truncate."""
    wide = np.asarray(image).astype(np.int64).clip(0, 65535)
    return Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        image = _sixteen_bit(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def decode(data: bytes, limits: Limits = DEFAULT_LIMITS, *, at_least_px: int = 0) -> Image.Image:
    """An RGB image, upright, of the original size. Raises ImageError with a machine-readable
    reason.

    Formats: JPEG, PNG, WebP, GIF (first frame), BMP. A truncated image is an error, not a grey
    rest. With ``at_least_px`` a JPEG may come out smaller, by a power of two, with no edge below
    that: decoding one for a thumbnail is then several times faster.
    """
    with _open(data, limits) as image:
        try:
            if at_least_px:
                image.draft(None, (at_least_px, at_least_px))
            image.load()
            rgb = _rgb(image)
            turn = _TURNS.get(_orientation(image))
            upright = rgb.transpose(turn) if turn is not None else rgb
        except Exception as error:  # as above: decoders raise almost any type on damaged data
            raise ImageError(f"the image is damaged: {error}", "IMAGE_DAMAGED") from error
    upright.info = {}  # profiles, EXIF and comments are of no use to a model and may be large
    return upright


def crop(image: Image.Image, box: Box) -> Image.Image:
    """The part of an image that a box holds, at least one pixel of it."""
    left = min(math.floor(box[0] * image.width), image.width - 1)
    top = min(math.floor(box[1] * image.height), image.height - 1)
    right = max(math.ceil(box[2] * image.width), left + 1)
    bottom = max(math.ceil(box[3] * image.height), top + 1)
    return image.crop((left, top, right, bottom))


def thumbnail(
    data: bytes, max_px: int, limits: Limits = DEFAULT_LIMITS, *, box: Box | None = None
) -> bytes:
    """WebP bytes of the image, or of a box of it, fitted into a square of ``max_px``; never
    enlarged. Raises ImageError.
    """
    share = min(box[2] - box[0], box[3] - box[1]) if box is not None else 1.0
    image = decode(data, limits, at_least_px=math.ceil(2 * max_px / max(share, 1e-6)))
    if box is not None:
        image = crop(image, box)
    image.thumbnail((max_px, max_px), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "WEBP", quality=80, method=2)
    return out.getvalue()


def dhash(image: Image.Image) -> int:
    """64-bit difference hash: 8 rows of 8 comparisons of neighbours on a 9 x 8 grey miniature.

    Photos that differ by scale, compression or slight colour changes differ in few bits.
    """
    grey = image.convert("L").resize((9, 8), Image.Resampling.BOX)
    small = np.asarray(grey, dtype=np.int16)
    bits = (small[:, 1:] > small[:, :-1]).reshape(-1)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def near_pairs(hashes: Sequence[int], max_distance: int = 4) -> list[tuple[int, int]]:
    """All pairs i < j of 64-bit hashes that differ in at most ``max_distance`` bits, sorted.

    By the pigeonhole principle such a pair agrees wholly in one of ``max_distance + 1`` bit ranges,
    so only hashes that share a range are compared.
    """
    edges = np.linspace(0, 64, max_distance + 2).astype(int)
    pairs: set[tuple[int, int]] = set()
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        buckets: dict[int, list[int]] = {}
        mask = ((1 << int(high - low)) - 1) << int(low)
        for index, value in enumerate(hashes):
            bucket = buckets.setdefault(value & mask, [])
            pairs.update(
                (other, index)
                for other in bucket
                if (hashes[other] ^ value).bit_count() <= max_distance
            )
            bucket.append(index)
    return sorted(pairs)


def to_array(image: Image.Image) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """uint8 [H, W, 3] of an RGB image, its own memory."""
    return np.array(image, dtype=np.uint8)
