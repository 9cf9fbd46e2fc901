from __future__ import annotations

import numpy as np
import pytest
from stillhouse.common.v1 import tensor_pb2

from services.common.errors import InvalidInput
from services.common.tensors import expect, from_message, pack_arrays, to_message, unpack_arrays


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "u1", "i4", "i8"])
def test_round_trip_keeps_values_shape_and_dtype(dtype: str) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    back = from_message(to_message(array))
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


def test_bytes_are_little_endian_and_row_major() -> None:
    array = np.asfortranarray(np.array([[1, 2], [3, 4]], dtype=">i4"))
    assert to_message(array).data == b"".join(n.to_bytes(4, "little") for n in (1, 2, 3, 4))


@pytest.mark.parametrize(
    ("shape", "data"),
    [
        ([2, 2], b"\0" * 15),
        ([2, 2], b"\0" * 17),
        ([-1, 4], b""),
        ([1] * 9, b"\0" * 4),
        ([1 << 62, 4], b""),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(shape: list[int], data: bytes) -> None:
    message = tensor_pb2.Tensor(dtype=tensor_pb2.D_TYPE_FLOAT32, shape=shape, data=data)
    with pytest.raises(InvalidInput):
        from_message(message)


def test_unknown_dtype_is_refused() -> None:
    with pytest.raises(InvalidInput, match="dtype"):
        from_message(tensor_pb2.Tensor(shape=[0]))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    message = to_message(np.array([0.0, bad], np.float16))
    with pytest.raises(InvalidInput, match="NaN"):
        from_message(message)
    assert not np.isfinite(from_message(message, finite=False)).all()


def test_expect_checks_every_axis() -> None:
    array = np.zeros((2, 3), np.float32)
    assert expect(array, shape=(None, 3), field="x") is array
    with pytest.raises(InvalidInput, match=r"x: shape \(2, 3\)"):
        expect(array, shape=(None, 4), field="x")


def test_packed_bytes_do_not_depend_on_the_order_of_names() -> None:
    a, b = np.arange(3, dtype=np.float32), np.ones((2, 2), np.float16)
    assert pack_arrays({"a": a, "b": b}) == pack_arrays({"b": b, "a": a})
    back = unpack_arrays(pack_arrays({"a": a, "b": b}))
    np.testing.assert_array_equal(back["b"], b)


@pytest.mark.parametrize(
    "data", [b"", b"text", b"\xff" * 64, (1 << 40).to_bytes(8, "little") + b"{}"]
)
def test_bytes_that_are_not_safetensors_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput, match="safetensors"):
        unpack_arrays(data)
