"""Ingest: every image checked once, splits decided by content, duplicates found, nothing lost."""

from __future__ import annotations

import io
import random
import zlib
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from services.common.blobs import BlobStore, digest_of
from services.common.errors import Cancelled, InvalidInput
from services.common.images import Limits
from services.common.manifest import Manifest
from services.gateway.datasets.duplicates import cross_split_pairs, duplicate_groups
from services.gateway.datasets.entries import Entry, Listing, Rejected
from services.gateway.datasets.ingest import Ingested, Options, Verdicts, ingest
from services.gateway.datasets.readers import Reading, open_uri
from services.gateway.datasets.splits import Shares, assign, thin
from tests.gateway.conftest import make_photo


class Memory:
    """A source in memory, read in the order given."""

    def __init__(
        self, files: dict[str, bytes], splits: dict[str, str] | None = None, *, many: bool = False
    ) -> None:
        self.files = files
        self.splits = splits or {}
        self.many = many

    def listing(self) -> Listing:
        entries = [
            Entry(name, tuple(name.split("/")[0].split("+")), self.splits.get(name, ""))
            for name in self.files
        ]
        return Listing(entries, multi_label=self.many)

    def read(self, wanted: Collection[str]) -> Iterator[tuple[str, bytes | Rejected]]:
        yield from ((name, data) for name, data in self.files.items() if name in wanted)


def photos(count: int = 12, labels: str = "ab") -> dict[str, bytes]:
    return {f"{labels[n % len(labels)]}/{n:03d}.jpg": make_photo(n) for n in range(count)}


def run(source: Memory, blobs: BlobStore, options: Options | None = None) -> Ingested:
    return ingest(source, blobs, "p", options or Options())


def bomb_png(side: int = 30_000) -> bytes:
    """A PNG whose header promises 900 million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + kind + data + crc

    head = side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    body = zlib.compress(b"\0" * 100_000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_images_and_manifest_lie_in_the_blob_store(blobs: BlobStore) -> None:
    files = photos()
    done = run(Memory(files), blobs)
    stored = Manifest.from_bytes(blobs.get("p", done.manifest_digest))
    assert stored == done.manifest
    assert stored.classes == ("a", "b")
    assert [item.item_id for item in stored.items] == list(files)
    for item in stored.items:
        assert blobs.get("p", item.digest) == files[item.item_id]
        assert stored.classes[item.labels[0]] == item.item_id[0]


def test_a_second_ingest_gives_the_same_manifest(blobs: BlobStore, tmp_path: Path) -> None:
    first = run(Memory(photos(40)), blobs)
    assert run(Memory(photos(40)), blobs).manifest_digest == first.manifest_digest
    elsewhere = BlobStore(str(tmp_path / "elsewhere"))
    assert run(Memory(photos(40)), elsewhere).manifest_digest == first.manifest_digest


def test_known_images_are_stored_without_decoding(blobs: BlobStore) -> None:
    files, verdicts = photos(), Verdicts()
    first = ingest(Memory(files), blobs, "p", Options(), verdicts=verdicts)
    none_decodes = Limits(max_bytes=1)
    again = ingest(Memory(files), blobs, "p", Options(), verdicts=verdicts, limits=none_decodes)
    assert again.manifest_digest == first.manifest_digest
    with pytest.raises(InvalidInput, match="no usable image"):
        ingest(Memory(files), blobs, "q", Options(), verdicts=verdicts, limits=none_decodes)


def test_an_image_keeps_its_split_whatever_it_is_called(blobs: BlobStore) -> None:
    files = photos(40)
    renamed = {f"{name[0]}/new-{name[2:]}": data for name, data in reversed(files.items())}
    one, two = (run(Memory(f), blobs).manifest for f in (files, renamed))
    assert {i.digest: i.split for i in one.items} == {i.digest: i.split for i in two.items}


def test_bad_images_are_rejected_and_harm_no_other(blobs: BlobStore) -> None:
    good = make_photo(1)
    sixteen = io.BytesIO()
    Image.fromarray(np.arange(1024, dtype=np.uint16).reshape(32, 32) * 64).save(sixteen, "PNG")
    cmyk = io.BytesIO()
    Image.new("CMYK", (20, 20), (1, 2, 3, 4)).save(cmyk, "JPEG")
    tiny = io.BytesIO()
    Image.new("RGB", (1, 1)).save(tiny, "PNG")
    bad = {
        "a/cut.jpg": good[: len(good) // 2],
        "a/empty.jpg": b"",
        "b/text.jpg": b"this is not an image",
        "b/bomb.png": bomb_png(),
    }
    fine = {"a/good.jpg": good, "b/16.png": sixteen.getvalue(), "a/cmyk.jpg": cmyk.getvalue()}
    fine["b/1x1.png"] = tiny.getvalue()
    done = run(Memory(bad | fine), blobs)
    assert {item.item_id for item in done.manifest.items} == set(fine)
    assert {one.path for one in done.rejected} == set(bad)
    assert all(one.reason for one in done.rejected)
    assert not blobs.exists("p", digest_of(bad["b/bomb.png"]))


def test_the_callers_limits_hold(blobs: BlobStore) -> None:
    files = photos(4) | {"a/large.png": make_photo(9, (300, 300), "PNG")}
    done = ingest(Memory(files), blobs, "p", Options(), limits=Limits(max_pixels=10_000))
    assert [one.path for one in done.rejected] == ["a/large.png"]


def test_an_image_turned_by_exif_equals_the_upright_one(blobs: BlobStore) -> None:
    upright = Image.open(io.BytesIO(make_photo(3, (64, 48))))
    turned, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(turned, "JPEG", exif=exif, quality=95)
    files = photos(6) | {"a/up.jpg": make_photo(3, (64, 48)), "b/turned.jpg": turned.getvalue()}
    files.pop("b/003.jpg")
    splits = dict.fromkeys(files, "train") | {"b/turned.jpg": "test"}
    done = run(Memory(files, splits), blobs)
    assert done.duplicate_count == 1
    assert done.duplicates[0][:2] == ("a/up.jpg", "b/turned.jpg")


def test_no_image_at_all_says_what_was_found(blobs: BlobStore) -> None:
    with pytest.raises(InvalidInput, match=r"no usable image among 1 files; for example a/x.jpg"):
        run(Memory({"a/x.jpg": b"text"}), blobs)


def test_one_class_is_not_a_task(blobs: BlobStore) -> None:
    with pytest.raises(InvalidInput, match="at least two classes"):
        run(Memory(photos(4, "a")), blobs)


def test_an_ingest_can_be_stopped(blobs: BlobStore) -> None:
    seen: list[int] = []
    with pytest.raises(Cancelled):
        ingest(
            Memory(photos(30)),
            blobs,
            "p",
            Options(),
            progress=lambda done, total: seen.append(done),
            stopping=lambda: len(seen) >= 3,
        )
    assert seen == [1, 2, 3]


def test_progress_counts_every_file(blobs: BlobStore) -> None:
    seen: list[tuple[int, int]] = []
    files = photos(6) | {"a/bad.jpg": b""}
    ingest(Memory(files), blobs, "p", Options(), progress=lambda *step: seen.append(step))
    assert seen == [(n, 7) for n in range(1, 8)]


def test_multi_label_items_may_have_no_label(blobs: BlobStore) -> None:
    files = {"a+b/1.jpg": make_photo(1), "b/2.jpg": make_photo(2)}
    done = run(Memory(files, many=True), blobs)
    assert [item.labels for item in done.manifest.items] == [(0, 1), (1,)]


def test_splits_of_the_source_stay(blobs: BlobStore) -> None:
    files = photos(9)
    splits = dict(zip(files, ["train", "val", "test"] * 3, strict=True))
    done = run(Memory(files, splits), blobs)
    assert {item.item_id: item.split for item in done.manifest.items} == splits
    assert done.split_counts == {"train": 3, "val": 3, "test": 3}


def cut(
    labels: list[tuple[str, ...]],
    given: list[str] | None = None,
    groups: list[int] | None = None,
    shares: Shares = Shares(),  # noqa: B008 - frozen
) -> list[str]:
    n = len(labels)
    digests = [digest_of(str(i).encode()) for i in range(n)]
    return assign(labels, given or [""] * n, digests, groups or list(range(n)), shares)


def test_a_held_out_part_called_val_becomes_the_test_split() -> None:
    assert cut([("a",)] * 3, ["train", "val", ""]) == ["train", "test", "train"]


@pytest.mark.parametrize("given", ["", "train", "test"])
def test_every_class_is_cut_alike(given: str) -> None:
    labels = [("a",)] * 100 + [("b",)] * 20 + [("c",)] * 3 + [("d",)]
    splits = cut(labels, [given] * 124)
    counts = Counter(zip(labels, splits, strict=True))
    assert [counts[("a",), "test"], counts[("a",), "val"]] == [20, 10]
    assert [counts[("b",), "test"], counts[("b",), "val"]] == [4, 2]
    assert [counts[("c",), "test"], counts[("c",), "train"]] == [1, 2]
    assert counts[("d",), "train"] == 1


def test_near_duplicates_stay_together() -> None:
    groups = [n // 3 for n in range(120)]
    splits = cut([("a",)] * 60 + [("b",)] * 60, groups=groups)
    assert all(len({splits[i] for i in range(g * 3, g * 3 + 3)}) == 1 for g in range(40))
    assert 12 <= splits.count("test") <= 36


def test_thinning_is_even_over_classes() -> None:
    entries = [Entry(f"a{n}", ("a",)) for n in range(90)] + [
        Entry(f"b{n}", ("b",)) for n in range(9)
    ]
    kept = thin(entries, 20)
    assert Counter(entry.labels[0] for entry in kept) == {"a": 11, "b": 9}
    assert [e for e in entries if e in kept] == kept
    assert thin(list(reversed(entries)), 20) == list(reversed(kept))


def test_thinning_keeps_enough_to_train_on() -> None:
    sizes = {"train": 30, "val": 10, "test": 200}
    entries = [
        Entry(f"{label}{split}{n}", (label,), split)
        for label in "ab"
        for split, size in sizes.items()
        for n in range(size)
    ]
    counts = Counter(entry.split for entry in thin(entries, 40))
    assert counts == {"train": 24, "val": 4, "test": 12}


@pytest.mark.parametrize("limit", [0, 99, 1000])
def test_no_thinning_where_all_fit(limit: int) -> None:
    entries = [Entry(f"a{n}", ("a",)) for n in range(99)]
    assert thin(entries, limit) == entries


def brute_force(hashes: list[int], splits: list[str], most: int) -> set[tuple[int, int, int]]:
    return {
        (i, j, (hashes[i] ^ hashes[j]).bit_count())
        for i in range(len(hashes))
        for j in range(i + 1, len(hashes))
        if splits[i] != splits[j] and (hashes[i] ^ hashes[j]).bit_count() <= most
    }


def test_cross_split_pairs_equal_brute_force() -> None:
    rng = random.Random(0)
    bases = [rng.getrandbits(64) for _ in range(20)]
    hashes = [
        rng.choice(bases) ^ (1 << rng.randrange(64)) ^ (1 << rng.randrange(64)) for _ in range(90)
    ]
    hashes += [bases[0]] * 4
    splits = [rng.choice(["train", "val", "test"]) for _ in hashes]
    expected = brute_force(hashes, splits, 4)
    count, pairs = cross_split_pairs(hashes, splits)
    assert count == len(expected)
    assert set(pairs) <= expected
    assert len(pairs) == min(100, count)
    assert [distance for _, _, distance in pairs] == sorted(d for _, _, d in pairs)


def test_thousands_of_equal_images_are_counted_not_listed() -> None:
    # Pair by pair this would take longer than a test may.
    hashes = [7] * 20_000
    splits = ["train", "test"] * 10_000
    count, pairs = cross_split_pairs(hashes, splits)
    assert count == 10_000 * 10_000
    assert len(pairs) <= 100
    assert len(set(duplicate_groups(hashes))) == 1


def test_a_chain_of_alike_backgrounds_is_not_one_group() -> None:
    hashes = [(1 << n) - 1 for n in range(64)]
    assert len(set(duplicate_groups(hashes))) == 64
    assert len(set(duplicate_groups([0, 1, 1 << 40, (1 << 60) - 1]))) == 2


def test_a_folder_from_disk(tmp_path: Path, reading: Reading, blobs: BlobStore) -> None:
    for name, data in photos(20).items():
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    done = ingest(open_uri(str(tmp_path / "set"), reading), blobs, "p", Options(max_items=10))
    assert len(done.manifest.items) == 10
    assert Counter(item.labels[0] for item in done.manifest.items) == {0: 5, 1: 5}
