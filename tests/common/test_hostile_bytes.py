"""Every decoder of bytes, fed with what nobody sane writes: an answer or a plain refusal."""

from __future__ import annotations

import bz2
import functools
import io
import json
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.numpy import save
from stillhouse.common.v1 import items_pb2, tensor_pb2

from services.common import archive, images, tensors, texts, weights
from services.common.archive import ArchiveError
from services.common.augmentation import read_augmentation
from services.common.classifier_records import ClassifierRecord
from services.common.errors import Internal, InvalidInput, StillhouseError
from services.common.manifest import Item, Manifest
from services.common.model_records import LanguageModelRecord
from services.common.shards import pack_regions, pack_rows, unpack_regions, unpack_rows
from services.common.targets import SparseTargets, TargetShard
from services.common.view_shards import unpack_views
from services.gateway.datasets.text_files import read_rows
from services.gateway.datasets.trees import Tree, archive_tree
from tests.hostile import files

Edit = tuple[str, float, Any]
_EDITS = st.lists(
    st.tuples(
        st.sampled_from(("flip", "cut", "double", "overwrite", "insert")),
        st.floats(0, 1),
        st.binary(max_size=9),
    ),
    max_size=4,
)
_DTYPES = st.sampled_from(("<f2", "<f4", "<f8", "u1", "<u2", "<i4", "<i8", "?"))
_SHAPES = st.lists(st.integers(0, 4), max_size=4)
_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from((10**400, "train", "test", "0" * 64, "stillhouse.texts", "language_model")),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


def refusing(work: Callable[[], object], *others: type[Exception]) -> None:
    """Let `work` answer or refuse; anything else it raises is a bug."""
    try:
        work()
    except Internal:
        raise
    except (StillhouseError, *others):
        pass


def edited(data: bytes, edits: list[Edit]) -> bytes:
    """Return data, damaged."""
    found = bytearray(data)
    for how, place, piece in edits:
        at = int(place * len(found))
        if how == "flip" and at < len(found):
            found[at] ^= 1 + sum(piece) % 255
        elif how == "cut":
            del found[at:]
        elif how == "double":
            found += found[at : at + 4000]
        elif how == "overwrite":
            found[at : at + len(piece)] = piece
        else:
            found[at:at] = piece
    return bytes(found)


@given(st.sampled_from(files.images()), _EDITS, st.booleans())
def test_images(data: bytes, edits: list[Edit], small: bool) -> None:
    limits = images.Limits(max_pixels=2_000_000)
    given_bytes = edited(data, edits)
    refusing(lambda: images.inspect(given_bytes, limits))
    refusing(lambda: images.decode(given_bytes, limits, at_least_px=40 if small else 0))
    refusing(lambda: images.thumbnail(given_bytes, 40, limits, box=(0.1, 0.1, 0.2, 0.9)))


@given(
    st.integers(-1, 99),
    st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 4), max_size=10),
    st.binary(max_size=64),
    st.booleans(),
)
@example(2, [0, 2**62, 2**62], b"", True)
@example(1, [], b"\x00\x7e", True)
def test_tensors(dtype: int, shape: list[int], data: bytes, finite: bool) -> None:
    message = tensor_pb2.Tensor(dtype=dtype, shape=shape, data=data)  # type: ignore[arg-type]
    refusing(lambda: tensors.from_message(message, finite=finite))


@given(st.sampled_from((*files.archives(), *files.tables())), _EDITS)
def test_archives(data: bytes, edits: list[Edit]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "packed").write_bytes(edited(data, edits))
        target = folder / "out"
        refusing(
            lambda: archive.unpack(folder / "packed", target, max_bytes=1 << 20, max_files=50),
            ArchiveError,
        )
        found = [path for path in folder.rglob("*") if path.name != "packed"]
        assert all(path.is_relative_to(target) for path in found)
        assert not any(path.is_symlink() for path in found)
        assert sum(path.stat().st_size for path in found if path.is_file()) <= 2 << 20


def _impossible() -> dict[str, bytes]:
    """A zip whose files begin before its first byte, and a tar whose bzip2 is no such stream."""
    early, lines = bytearray(files.archives()[0]), b'{"text": "a line"}\n' * 5000
    struct.pack_into("<I", early, len(early) - 6, 2**31)
    packed = bytearray(bz2.compress(files.packed_tar({"a.jsonl": lines, "b.jsonl": b"{}"})))
    packed[len(packed) // 2] ^= 255
    return {"zip": bytes(early), "tar.bz2": bytes(packed)}


def _read_texts(tree: Tree) -> None:
    for name, stream in tree.streams(tree.names()[0]):
        for _ in read_rows(name, stream):
            pass


@pytest.mark.parametrize("kind", ["zip", "tar.bz2"])
def test_archives_that_ask_for_the_impossible(kind: str, tmp_path: Path) -> None:
    """The system's own errors, for places that do not exist, are a refusal of the archive."""
    data = _impossible()[kind]
    (tmp_path / "packed").write_bytes(data)
    with pytest.raises(ArchiveError):
        archive.unpack(tmp_path / "packed", tmp_path / "out")
    tree = archive_tree(lambda: (tmp_path / "packed").open("rb"))
    with pytest.raises(InvalidInput):
        _read_texts(tree)


def test_a_text_damaged_within_its_archive_is_refused() -> None:
    """Its bytes are read as a stream, after the archive has been opened."""
    data = bytearray(files.packed_zip({"a.jsonl": b'{"text": "a line"}\n' * 50}))
    at = data.index(b"a.jsonl") + len("a.jsonl")
    data[at + 4] ^= 255
    tree = archive_tree(lambda: io.BytesIO(data))
    with pytest.raises(InvalidInput):
        _read_texts(tree)


@given(st.sampled_from(files.weights()) | st.binary(max_size=40), _EDITS, _JSON)
def test_weight_headers(data: bytes, edits: list[Edit], value: object) -> None:
    odd = json.dumps({"a": value, "b": {"dtype": "F32", "shape": [1], "data_offsets": value}})
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "w"
        for content in (edited(data, edits), struct.pack("<Q", len(odd)) + odd.encode()):
            path.write_bytes(content)
            refusing(functools.partial(weights.content_digest, path), weights.WeightsError)
            refusing(functools.partial(tensors.unpack_arrays, content))


def _manifest() -> bytes:
    items = tuple(Item(f"i{at}", "0" * 64, "train", (at % 2,)) for at in range(3))
    return Manifest(("a", "b"), False, items).to_bytes()


DOCUMENTS: dict[str, tuple[Callable[[bytes], object], bytes]] = {
    "manifest": (Manifest.from_bytes, _manifest()),
    "texts": (
        texts.TextManifest.from_bytes,
        texts.TextManifest((texts.TextShardRef("0" * 64, 1, "train"),), {"text": 1}).to_bytes(),
    ),
    "records": (texts.unpack_records, texts.pack_records([texts.TextRecord("a", text="b")])),
    "language model": (
        LanguageModelRecord.from_bytes,
        LanguageModelRecord("checkpoint", {"a.json": "0" * 64}, "0" * 64, "0" * 64).to_bytes(),
    ),
    "classifier": (
        ClassifierRecord.from_bytes,
        json.dumps(
            {"kind": "image_classifier", "architecture": "x", "classes": ["a"], "weights": "0" * 64}
            | {"single_label": True, "input": {"size_px": 224}}
        ).encode(),
    ),
}


@pytest.mark.parametrize("name", DOCUMENTS)
@given(data=st.data())
def test_documents(name: str, data: st.DataObject) -> None:
    read, good = DOCUMENTS[name]
    refusing(lambda: read(edited(good, data.draw(_EDITS))))
    spoiled = json.loads(good)
    places = [key for key in spoiled]
    key = data.draw(st.sampled_from([*places, "other"]))
    spoiled[key] = data.draw(_JSON)
    refusing(lambda: read(json.dumps(spoiled).encode()))
    inner = next((v for v in json.loads(good).values() if isinstance(v, list) and v), [{}])[0]
    if isinstance(inner, dict) and inner:
        whole = json.loads(good)
        listed = next(
            k for k, v in whole.items() if isinstance(v, list) and v == [*v] and inner in v
        )
        whole[listed][0][data.draw(st.sampled_from(sorted(inner)))] = data.draw(_JSON)
        refusing(lambda: read(json.dumps(whole).encode()))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_deep_documents(name: str) -> None:
    read, _ = DOCUMENTS[name]
    for deep in (b"[" * 100_000, b'{"kind":' * 100_000, b'{"items": ' + b"[" * 100_000):
        refusing(functools.partial(read, deep))


def _targets() -> bytes:
    one = SparseTargets(
        np.arange(4, dtype=np.int32),
        np.array([0, 1, 1, 1], np.uint8),
        np.array([1, 2, 5], np.int32),
        np.array([0, 1, 2], np.int32),
        np.array([3, 1, 2], np.int64),
    )
    return TargetShard.encode([one, one], kind="sampled")


def _read_targets(data: bytes) -> None:
    shard = TargetShard.from_bytes(data)
    for at in range(len(shard)):
        shard.sequence(at)


_AUGMENTATION = read_augmentation(items_pb2.Augmentation(policy="none"))
_ROW = np.zeros(3, "<f4")
_REGIONS = (np.zeros((2, 4), "<f2"), np.zeros((3, 3), np.uint8))
_VIEWS = {
    "digests": np.zeros((1, 32), np.uint8),
    "valid": np.ones(1, np.uint8),
    "augmentation": np.frombuffer(bytes.fromhex(_AUGMENTATION.digest), np.uint8),
    "logits": np.zeros((1, _AUGMENTATION.views, 2), "<f2"),
}
SHARDS: dict[str, tuple[Callable[[bytes], object], bytes]] = {
    "rows": (lambda data: unpack_rows("a", [data, data]), pack_rows("a", [_ROW, None])),
    "regions": (lambda data: unpack_regions([data, data]), pack_regions([_REGIONS, None])),
    "views": (lambda data: unpack_views([data], _AUGMENTATION, 2), tensors.pack_arrays(_VIEWS)),
    "targets": (_read_targets, _targets()),
}


@pytest.mark.parametrize("name", SHARDS)
@given(data=st.data())
def test_shards(name: str, data: st.DataObject) -> None:
    """Bytes that are damaged, and safetensors in which arrays have another form."""
    read, good = SHARDS[name]
    refusing(lambda: read(edited(good, data.draw(_EDITS))))
    arrays = dict(tensors.unpack_arrays(good))
    for key in data.draw(st.lists(st.sampled_from(sorted(arrays)), min_size=1, max_size=3)):
        old = arrays[key]
        shape = data.draw(st.just(list(old.shape)) | _SHAPES)
        fill = data.draw(st.sampled_from((0, 1, 2, 7, 255, -1, 2**31, 2**62, np.nan)))
        dtype = data.draw(st.just(old.dtype.str) | _DTYPES)
        with np.errstate(all="ignore"):
            arrays[key] = _filled(shape, fill, dtype)
    if data.draw(st.booleans()):
        arrays.pop(data.draw(st.sampled_from(sorted(arrays))))
    refusing(lambda: read(save(arrays)))


def _filled(shape: list[int], fill: float, dtype: str) -> Any:
    kind = np.dtype(dtype)
    if kind.kind in "iu":
        fill = 0 if fill != fill else min(max(int(fill), np.iinfo(kind).min), np.iinfo(kind).max)
    return np.full(shape, fill, kind)


def test_images_are_read_from_memory_alone() -> None:
    """A file name in place of an image opens nothing."""
    with pytest.raises(images.ImageError):
        images.decode(b"/etc/passwd")
    assert io.BytesIO(files.images()[0]).read()
