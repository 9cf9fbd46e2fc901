from __future__ import annotations

import contextlib
import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from services.common import images
from services.common.images import ImageError, Limits, decode, dhash, inspect, near_pairs


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def photo(width: int = 120, height: int = 80) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def png_bomb(edge: int) -> bytes:
    """A PNG of edge x edge black pixels, one long run: hundreds of kilobytes encoded."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    row = zlib.compressobj(9)
    data = b"".join(row.compress(bytes(edge // 8 + 2)) for _ in range(edge)) + row.flush()
    header = struct.pack(">IIBBBBB", edge, edge, 1, 0, 0, 0, 0)
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def reason_of(data: bytes, limits: Limits = images.DEFAULT_LIMITS) -> str:
    with pytest.raises(ImageError) as caught:
        decode(data, limits)
    return caught.value.reason


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP"])
def test_lossless_formats_come_back_exactly(kind: str) -> None:
    data = encoded(photo(), kind, **({"lossless": True} if kind == "WEBP" else {}))
    assert np.array_equal(np.asarray(decode(data)), np.asarray(photo()))


def test_good_jpeg_is_near_the_original() -> None:
    image = decode(encoded(photo(), "JPEG", quality=95))
    assert (image.mode, image.size) == ("RGB", (120, 80))
    assert np.abs(np.asarray(image).astype(int) - np.asarray(photo())).mean() < 3


def test_every_truncation_of_a_jpeg_is_an_error() -> None:
    data = encoded(photo(), "JPEG")
    for length in range(1, len(data) - 20, 97):
        assert reason_of(data[:length]) in {"IMAGE_DAMAGED", "IMAGE_UNKNOWN_FORMAT"}


def test_truncated_png_is_damaged() -> None:
    data = encoded(photo(), "PNG")
    assert reason_of(data[: len(data) // 2]) == "IMAGE_DAMAGED"


def test_one_pixel() -> None:
    assert decode(encoded(Image.new("RGB", (1, 1), (9, 8, 7)), "PNG")).getpixel((0, 0)) == (9, 8, 7)


def test_sixteen_bit_png_is_scaled_not_clipped() -> None:
    wide = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    grey = np.asarray(decode(encoded(Image.fromarray(wide), "PNG")))
    assert grey[0, :, 0].tolist() == [0, 1, 128, 255]
    assert (grey[..., 0] == grey[..., 2]).all()


def test_cmyk_jpeg_keeps_its_colours() -> None:
    flat = Image.new("RGB", (32, 32), (200, 60, 30)).convert("CMYK")
    red, green, blue = decode(encoded(flat, "JPEG", quality=95)).getpixel((16, 16))  # type: ignore[misc]
    assert abs(red - 200) < 12
    assert abs(green - 60) < 12
    assert abs(blue - 30) < 12


def test_alpha_lies_on_white() -> None:
    half = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    half.putpixel((1, 0), (255, 0, 0, 255))
    image = decode(encoded(half, "PNG"))
    assert [image.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (255, 0, 0)]


def test_palette_with_transparency_lies_on_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    data = encoded(image, "PNG", transparency=0)
    assert [decode(data).getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (200, 100, 50)]


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(data).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = photo(64, 48)
    exif = Image.Exif()
    exif[0x0112] = orientation
    undo = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}[orientation]
    stored = upright if undo == 1 else upright.transpose(images._TURNS[undo])
    assert np.array_equal(
        np.asarray(decode(encoded(stored, "PNG", exif=exif))), np.asarray(upright)
    )


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_exif_does_not_spoil_the_photo() -> None:
    data = encoded(photo(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff rubbish")
    assert decode(data).size == (120, 80)


def test_bomb_is_refused_by_its_header_with_little_memory() -> None:
    data = png_bomb(30_000)
    assert len(data) < 1 << 20
    tracemalloc.start()
    assert reason_of(data) == "IMAGE_TOO_MANY_PIXELS"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 << 20


def test_between_our_limit_and_pillows() -> None:
    assert reason_of(png_bomb(8_200)) == "IMAGE_TOO_MANY_PIXELS"  # 67 MP
    assert reason_of(png_bomb(10_000)) == "IMAGE_TOO_MANY_PIXELS"  # Pillow warns


def test_thread_like_image_is_refused() -> None:
    data = encoded(Image.new("L", (5_000, 2)), "PNG")
    assert reason_of(data) == "IMAGE_TOO_ELONGATED"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "IMAGE_EMPTY"),
        (b"this is a text, not a photo", "IMAGE_UNKNOWN_FORMAT"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "IMAGE_UNKNOWN_FORMAT"),
        (b"\0" * 4096, "IMAGE_UNKNOWN_FORMAT"),
    ],
)
def test_not_an_image(data: bytes, reason: str) -> None:
    assert reason_of(data) == reason


def test_too_many_bytes() -> None:
    assert reason_of(bytes(101), Limits(max_bytes=100)) == "IMAGE_TOO_MANY_BYTES"


def test_error_names_the_field() -> None:
    with pytest.raises(ImageError) as caught:
        decode(b"")
    assert caught.value.field == "image"
    assert caught.value.to_status().code == 3


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_random_damage_gives_an_image_or_an_image_error() -> None:
    random = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP"):
        data = encoded(photo(), kind)
        for _ in range(40):
            broken = bytearray(data)
            for place in random.integers(0, len(data), 8):
                broken[place] = int(random.integers(256))
            with contextlib.suppress(ImageError):  # any other exception fails the test
                assert decode(bytes(broken)).mode == "RGB"


def test_inspect_reads_only_the_header() -> None:
    data = encoded(photo(), "JPEG")
    assert inspect(data[:700]) == images.Header(120, 80, "JPEG")


def test_thumbnail_fits_the_square() -> None:
    small = decode(images.thumbnail(encoded(photo(), "PNG"), 40))
    assert small.size == (40, 27)


def test_dhash_survives_scale_and_compression_and_tells_others_apart() -> None:
    random = np.random.default_rng(1)
    one, other = (
        Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((160, 120))
        for _ in range(2)
    )
    again = decode(encoded(one.resize((97, 71)), "JPEG", quality=60))
    assert (dhash(one) ^ dhash(again)).bit_count() <= 6
    assert (dhash(one) ^ dhash(other)).bit_count() > 12


def test_near_pairs_equals_comparing_all() -> None:
    random = np.random.default_rng(2)
    hashes = [int(x) for x in random.integers(0, 1 << 63, 60)]
    hashes += [
        h ^ (1 << int(random.integers(63))) ^ (1 << int(random.integers(63))) for h in hashes
    ]
    everyone = [
        (i, j)
        for i in range(len(hashes))
        for j in range(i + 1, len(hashes))
        if (hashes[i] ^ hashes[j]).bit_count() <= 4
    ]
    assert len(everyone) >= 60
    assert near_pairs(hashes, 4) == everyone
