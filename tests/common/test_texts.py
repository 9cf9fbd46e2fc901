"""Text records and manifests: canonical bytes, and what is refused."""

from __future__ import annotations

import json

import pytest

from services.common.errors import InvalidInput
from services.common.manifest import Manifest
from services.common.texts import (
    MAX_CHOICES,
    SHARD_RECORDS,
    TextManifest,
    TextRecord,
    TextShardRef,
    count_fields,
    pack_records,
    shards_of,
    unpack_records,
)

RECORDS = [
    TextRecord("a", text="ü\nline\u2028end\r"),
    TextRecord("b", "test", prompt="p", answer="q", group="g", chat=True),
    TextRecord("c", "val", prompt="p", choices=("x", "y"), choice_index=1, reference="y"),
]


def test_records_come_back_and_equal_ones_have_equal_bytes() -> None:
    data = pack_records(RECORDS)
    assert unpack_records(data) == RECORDS
    assert pack_records(unpack_records(data)) == data
    assert data.count(b"\n") == len(RECORDS)
    assert RECORDS[0].digest == TextRecord("a", text=RECORDS[0].text).digest
    assert len({record.digest for record in RECORDS}) == 3


@pytest.mark.parametrize(
    "line",
    [
        b"[]",
        b"{",
        b'{"text": "a"}',
        b'{"record_id": "a"}',
        b'{"record_id": "a", "text": "a", "prompt": "b"}',
        b'{"record_id": "a", "text": "a", "split": "dev"}',
        b'{"record_id": "a", "text": "a", "other": 1}',
        b'{"record_id": "a", "text": 3}',
        b'{"record_id": "a", "prompt": "p", "choices": ["x"], "choice_index": 1}',
        b'{"record_id": "a", "prompt": "p", "choices": 3}',
        b'{"record_id": "a", "text": "' + b"x" * 1_000_001 + b'"}',
        b'{"record_id": "\\ud800", "text": "a"}',
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_lines_that_are_no_records_are_refused(line: bytes) -> None:
    with pytest.raises(InvalidInput):
        unpack_records(line)


def test_too_many_choices() -> None:
    with pytest.raises(InvalidInput):
        TextRecord("a", prompt="p", choices=("x",) * (MAX_CHOICES + 1)).check()


def test_a_manifest_comes_back_and_knows_its_splits() -> None:
    shards = tuple(TextShardRef(c * 64, n, s) for c, n, s in (("a", 3, "train"), ("b", 2, "test")))
    manifest = TextManifest(shards, {"text": 5})
    assert TextManifest.from_bytes(manifest.to_bytes()) == manifest
    assert (manifest.count("train"), manifest.count("val")) == (3, 0)
    assert manifest.of("test") == [shards[1]]


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b'{"kind": "texts"}', b'{"kind": "texts", "shards": [1]}']
)
def test_what_is_no_text_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput):
        TextManifest.from_bytes(data)


def test_a_manifest_of_images_is_told() -> None:
    with pytest.raises(InvalidInput, match="images, not texts"):
        TextManifest.from_bytes(Manifest(("a",), False, ()).to_bytes())


def test_shards_hold_one_split_and_a_bounded_number() -> None:
    records = [TextRecord(f"{n}", ("train", "test")[n % 3 == 0], text="t") for n in range(500)]
    found = shards_of(records)
    assert all(len(part) <= SHARD_RECORDS for _, part in found)
    assert all({one.split for one in part} == {split} for split, part in found)
    assert sum(len(part) for _, part in found) == 500
    assert count_fields(RECORDS) == {
        "text": 1,
        "prompt": 2,
        "answer": 1,
        "reference": 1,
        "choices": 1,
        "chat": 1,
    }
    json.dumps(count_fields(RECORDS))
