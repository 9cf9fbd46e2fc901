from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from services.common.errors import InvalidInput
from services.common.targets import SparseTargets, TargetShard
from services.common.tensors import pack_arrays, unpack_arrays
from services.common.varints import decode_varints, encode_varints, varint_sizes


def _one(rng: np.random.Generator, tokens: int, kind: str, vocab: int = 50_000) -> SparseTargets:
    """A sequence whose first token alone is no target, with 1 to 8 ids a target."""
    is_target = np.ones(tokens, np.uint8)
    is_target[0] = 0
    ids, row, values = [], [], []
    for at in range(tokens - 1):
        mine = np.sort(rng.choice(vocab, int(rng.integers(1, 9)), replace=False))
        ids.append(mine)
        row.append(np.full(len(mine), at))
        p = rng.dirichlet(np.ones(len(mine) + 1))[:-1]
        values.append(rng.integers(1, 300, len(mine)) if kind == "sampled" else np.log(p))
    tokens_of = rng.integers(0, vocab, tokens).astype(np.int32)
    ids_of, row_of, values_of = (np.concatenate(x) for x in (ids, row, values))
    return SparseTargets(tokens_of, is_target, ids_of, row_of, values_of)


def _leb128(value: int) -> bytes:
    out = bytearray()
    while True:
        out.append(value & 127 | (128 if value >> 7 else 0))
        value >>= 7
        if not value:
            return bytes(out)


def test_varints_are_leb128() -> None:
    values = np.array([0, 1, 127, 128, 300, 16_383, 16_384, (1 << 31) - 1, (1 << 35) - 1])
    data = encode_varints(values)
    assert data == b"".join(_leb128(int(v)) for v in values)
    assert varint_sizes(values).tolist() == [len(_leb128(int(v))) for v in values]
    back, rest = decode_varints(np.frombuffer(data + b"xyz", np.uint8), len(values))
    assert back.tolist() == values.tolist()
    assert bytes(rest) == b"xyz"
    for damaged in (data[:-1], b"\xff" * 6 + b"\x01"):
        with pytest.raises(InvalidInput):
            decode_varints(np.frombuffer(damaged, np.uint8), len(values))


@pytest.mark.parametrize("kind", ["sampled", "top_k"])
@pytest.mark.parametrize("vocab", [50_000, 200_000])
def test_what_is_stored_comes_back(kind: str, vocab: int) -> None:
    rng = np.random.default_rng(1)
    given = [_one(rng, tokens, kind, vocab) for tokens in (9, 40, 2)]
    data = TargetShard.encode(given, kind=kind, temperature=0.5)  # type: ignore[arg-type]
    assert data == TargetShard.encode(given, kind=kind, temperature=0.5)  # type: ignore[arg-type]
    shard = TargetShard.from_bytes(data)
    assert (len(shard), shard.kind, shard.temperature, shard.token_count) == (3, kind, 0.5, 48)
    assert shard.bytes_per_token == len(data) / 48
    for at, one in enumerate(given):
        got = shard.sequence(at)
        bytes_of = one.tokens.astype("<i4").tobytes() + one.is_target.tobytes()
        assert got.digest == hashlib.sha256(bytes_of).digest() == shard.digests[at]
        for mine, back in ((one.tokens, got.tokens), (one.is_target, got.is_target)):
            np.testing.assert_array_equal(mine, back)
        np.testing.assert_array_equal(one.ids, got.ids)
        np.testing.assert_array_equal(one.row, got.row)
        if kind == "sampled":
            draws = np.bincount(one.row, weights=one.values)
            np.testing.assert_allclose(got.weight, one.values / draws[one.row], rtol=1e-6)
            assert not got.tail.any()
        else:
            np.testing.assert_allclose(got.weight, np.exp(one.values), rtol=6e-3)
            whole = np.bincount(got.row, weights=got.weight) + got.tail
            np.testing.assert_allclose(whole, 1, atol=1e-6)


def test_records_come_back_where_they_are_stored() -> None:
    rng = np.random.default_rng(3)
    plain = [_one(rng, 9, "top_k"), _one(rng, 12, "top_k")]
    without = TargetShard.encode(plain, kind="top_k")
    assert "records" not in unpack_arrays(without)  # such shards are as they were
    assert TargetShard.from_bytes(without).records == [b"", b""]
    name = bytes(range(32))
    data = TargetShard.encode([plain[0], replace(plain[1], record=name)], kind="top_k")
    shard = TargetShard.from_bytes(data)
    assert shard.records == [b"", name]
    assert shard.bytes_per_token * shard.token_count == len(data) >= len(without) + 2 * 32
    for wrong in (np.zeros((3, 32), np.uint8), np.zeros((2, 32), np.int32)):
        with pytest.raises(InvalidInput, match="not a target shard"):
            TargetShard.from_bytes(pack_arrays(unpack_arrays(data) | {"records": wrong}))


def test_a_damaged_shard_is_refused() -> None:
    data = TargetShard.encode([_one(np.random.default_rng(2), 12, "sampled")], kind="sampled")
    arrays = unpack_arrays(data)
    changes = {
        "offsets": np.array([0, 99]),
        "payload_offsets": np.array([0, -1]),
        "digests": np.zeros((2, 32), np.uint8),
        "is_target": np.full(2, 255, np.uint8),
        "tokens": np.full(12, -1, np.int32),
        "kind": np.array([7], np.uint8),
        "temperature": np.array([np.nan]),
    }
    for name, value in changes.items():
        with pytest.raises(InvalidInput, match="not a target shard"):
            TargetShard.from_bytes(pack_arrays(arrays | {name: value}))
    with pytest.raises(InvalidInput, match="not a valid safetensors"):
        TargetShard.from_bytes(data[:-9])
    for payload in (np.full(len(arrays["payload"]), 255, np.uint8), arrays["payload"] // 2):
        shard = TargetShard.from_bytes(pack_arrays(arrays | {"payload": payload}))
        with pytest.raises(InvalidInput):
            shard.sequence(0)


def test_ids_must_ascend() -> None:
    row, ids = np.array([0, 0]), np.array([5, 5])
    one = SparseTargets(np.zeros(2, np.int32), np.array([0, 1]), ids, row, np.array([1, 1]))
    with pytest.raises(ValueError, match="ascend"):
        TargetShard.encode([one], kind="sampled")


def test_no_sequences() -> None:
    shard = TargetShard.from_bytes(TargetShard.encode([], kind="top_k"))
    assert (len(shard), shard.token_count) == (0, 0)
