"""Encoded images, archives, tables and weight files as an enemy would send them."""

from __future__ import annotations

import functools
import gzip
import io
import json
import random
import struct
import tarfile
import warnings
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from PIL import Image

from tests.support import hostile_batch, photo, png_bomb

_NAMES = (
    "../../evil.jpg",
    "/etc/passwd",
    "a/b.jpg",
    "C:\\x.jpg",
    "a\0b.jpg",
    "x" * 300,
    "a//..//b",
)


@functools.cache
def images() -> tuple[bytes, ...]:
    """Images of every kind that decoders meet: good, odd and broken."""
    return (*(data for data, _ in hostile_batch().values()), *_odd(), png_bomb(20_000))


def _odd() -> list[bytes]:
    """Animated, palette, thread-like, rotated by EXIF, of one bit, and headers that lie."""
    frames = [Image.new("P", (40, 30), at) for at in range(3)]
    exif = Image.Exif()
    exif[0x0112] = 6
    small = Image.open(io.BytesIO(photo(3)))
    found = [
        _saved(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        _saved(frames[0], "PNG", transparency=0),
        _saved(Image.new("1", (9, 9)), "BMP"),
        _saved(Image.new("L", (3000, 2)), "PNG"),
        _saved(small, "JPEG", exif=exif),
        _saved(small, "WEBP"),
        _saved(small, "TIFF"),
    ]
    found.append(photo(4)[:2] + b"\xff\xe1\xff\xffExif\0\0MM\0*" + bytes(80) + photo(4)[2:])
    found.append(
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", 2**31, 2**31, 8, 2, 0, 0, 0)
    )
    found.append(b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0xF7, 0, 0) + bytes(768))
    found.append(
        b"BM" + struct.pack("<IHHIIiiHH", 54, 0, 0, 54, 40, -(2**31), -(2**31), 1, 24) + bytes(24)
    )
    return found


def _saved(image: Image.Image, form: str, **how: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **how)  # type: ignore[arg-type]
    return out.getvalue()


def image(rng: random.Random) -> bytes:
    """One image, often damaged further."""
    return damaged(rng, rng.choice(images()))


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Return data, half of the time with flipped bits, a piece lost, doubled or overwritten."""
    if not data or rng.random() < 0.5:
        return data
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 3, 20))):
        at = rng.randrange(len(found) + 1)
        how = rng.randrange(5)
        if how == 0 and at < len(found):
            found[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            found = found[:at] or found
        elif how == 2:
            found[at:at] = found[max(0, at - rng.choice((1, 8, 300))) : at]
        elif how == 3:
            found[at : at + 4] = rng.choice((b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff"))
        else:
            del found[at : at + rng.choice((1, 4, 100))]
    return bytes(found)


@functools.cache
def archives() -> tuple[bytes, ...]:
    """Zip and tar files: names that lead out, links, devices, bombs, doubles, nests, layouts."""
    good = {f"{name}/{at}.jpg": photo(at) for name in "ab" for at in range(4)}
    bomb = {"a/bomb.jpg": bytes(8 << 20), "b/1.jpg": photo(1)}
    found = [
        packed_zip(good),
        packed_tar(good),
        packed_zip({name: photo(1) for name in _NAMES}),
        _tar_of_links(),
    ]
    found += [
        packed_tar({name: photo(1) for name in _NAMES}),
        packed_zip(bomb),
        gzip.compress(packed_tar(bomb)),
    ]
    found += [
        packed_zip({"in.zip": packed_zip(good), "a/in.tar": packed_tar(good)}),
        _twice(),
        _many(1500),
    ]
    found += [packed_zip(layout) for layout in layouts()]
    return (*found, gzip.compress(gzip.compress(bytes(1 << 20))), b"PK\x05\x06" + bytes(18))


def layouts() -> list[dict[str, bytes]]:
    """Files beside images: COCO, CSV and JSON lines that lie about them."""
    picture = photo(2)
    coco: list[object] = [
        {"images": [{"id": 1, "file_name": "../../etc/passwd"}], "annotations": [{"image_id": 9}]},
        {"images": 3, "annotations": {}, "categories": None},
        {
            "images": [{"id": [1], "file_name": {"a": 1}}],
            "annotations": [1, None],
            "categories": [[]],
        },
        {
            "images": [{"id": 1, "file_name": "1.jpg"}],
            "annotations": [{"image_id": 1, "category_id": 2**70}],
            "categories": [{"id": 2**70, "name": 5}],
        },
        [[]],
    ]
    tables = (
        b"file,label\n1.jpg,\n../x,a\n,,,\n",
        b"image,label\n" + b"x" * 200_000 + b",a",
        b'"\n' * 50,
        b"\xff\xfe\x00file",
        b"file_name,label\n1.jpg,a\n1.jpg,b\n",
    )
    lines = (
        b'{"file_name": "1.jpg", "label": ' + b"[" * 100_000,
        b'{"file_name": 1, "label": {"a": NaN}}\n{}',
        b'{"text": 5, "prompt": [], "choices": "no"}\n\0\n',
        b'{"prompt": "a", "answer": "\\ud800"}\n',
    )
    found = [{"1.jpg": picture, "annotations.json": json.dumps(one).encode()} for one in coco]
    found += [{"1.jpg": picture, "metadata.csv": one} for one in tables]
    return found + [{"1.jpg": picture, "metadata.jsonl": one} for one in lines]


def packed_zip(files: dict[str, bytes]) -> bytes:
    """Return a zip of files by name."""
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as packed:
        warnings.simplefilter("ignore")
        for name, data in files.items():
            packed.writestr(name.replace("\0", "_"), data)
    return out.getvalue()


def packed_tar(files: dict[str, bytes]) -> bytes:
    """Return a tar of files by name."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as packed:
        for name, data in files.items():
            info = tarfile.TarInfo(name.replace("\0", "_"))
            info.size = len(data)
            packed.addfile(info, io.BytesIO(data))
    return out.getvalue()


def _tar_of_links() -> bytes:
    """Links out of the folder, a device, a pipe, and a file through a link."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as packed:
        for at, kind in enumerate(
            (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)
        ):
            info = tarfile.TarInfo(f"a/{at}.jpg")
            info.type, info.linkname = kind, "/etc/passwd"
            packed.addfile(info)
        inside = tarfile.TarInfo("a/0.jpg/x.jpg")
        packed.addfile(inside)
    return out.getvalue()


def _twice() -> bytes:
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w") as packed:
        warnings.simplefilter("ignore")
        for at in range(3):
            packed.writestr("a/1.jpg", photo(at))
    return out.getvalue()


def _many(count: int) -> bytes:
    return packed_zip({f"a/{at}": b"" for at in range(count)})


def _parquet() -> bytes:
    rows = [{"bytes": photo(at), "path": "../x"} for at in range(3)]
    out = io.BytesIO()
    pa.parquet.write_table(pa.table({"image": rows, "label": [0, None, 2**40]}), out)
    return out.getvalue()


@functools.cache
def tables() -> tuple[bytes, ...]:
    """Files that are a dataset by themselves: JSON lines, CSV, parquet, weights."""
    lines = b"\n".join(json.dumps({"text": f"line {at}"}).encode() for at in range(20))
    loose = [data for layout in layouts() for name, data in layout.items() if name != "1.jpg"]
    return (lines, _parquet(), *weights(), *loose)


def weights() -> list[bytes]:
    """Headers of safetensors, GGUF and Keras files that lie."""
    lying = json.dumps(
        {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**62]}}
    ).encode()
    return [
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", len(lying)) + lying,
        struct.pack("<Q", 2) + b"[]",
        b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60),
        b"\x89HDF\r\n\x1a\n" + b"\xff" * 64,
    ]


def file(rng: random.Random) -> bytes:
    """One archive or table, often damaged."""
    return damaged(rng, rng.choice(archives() if rng.random() < 0.7 else tables()))


def array(rng: random.Random) -> bytes:
    """Raw numbers: NaN, infinity, noise."""
    kind = rng.choice(("<f2", "<f4", "<f8", "<i8", "u1"))
    values = np.array(
        [
            rng.choice((0, 1, -1, float("nan"), float("inf"), 3e38))
            for _ in range(rng.choice((0, 1, 7, 384)))
        ]
    )
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return values.astype(kind).tobytes()
