"""numpy arrays to and from `Tensor` messages: the only place where tensor bytes are interpreted."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save
from stillhouse.common.v1 import tensor_pb2

from services.common.errors import InvalidInput

Array = npt.NDArray[Any]

_DTYPES: dict[tensor_pb2.DType.ValueType, np.dtype[Any]] = {
    tensor_pb2.D_TYPE_FLOAT16: np.dtype("<f2"),
    tensor_pb2.D_TYPE_FLOAT32: np.dtype("<f4"),
    tensor_pb2.D_TYPE_FLOAT64: np.dtype("<f8"),
    tensor_pb2.D_TYPE_UINT8: np.dtype("u1"),
    tensor_pb2.D_TYPE_INT32: np.dtype("<i4"),
    tensor_pb2.D_TYPE_INT64: np.dtype("<i8"),
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
MAX_DIMENSIONS = 8


def to_message(array: Array) -> tensor_pb2.Tensor:
    """Return `array` as a message (row-major, little-endian). Raises TypeError for an unknown
    dtype."""
    code = _CODES.get(array.dtype)
    if code is None:  # of the other byte order, perhaps
        array = array.astype(array.dtype.newbyteorder("<"))
        code = _CODES.get(array.dtype)
    if code is None:
        raise TypeError(f"dtype {array.dtype} has no Tensor code")
    return tensor_pb2.Tensor(dtype=code, shape=array.shape, data=array.tobytes())


def from_message(
    message: tensor_pb2.Tensor, *, field: str = "tensor", finite: bool = True
) -> Array:
    """Return the message's array, read-only. Raises InvalidInput for a bad dtype, shape, size or
    NaN.

    `finite` refuses NaN and infinities in floating-point tensors.
    """
    dtype = _DTYPES.get(message.dtype)
    if dtype is None:
        raise InvalidInput(
            f"{field}: dtype {message.dtype} is not supported", field=f"{field}.dtype"
        )
    shape = tuple(message.shape)
    # An empty tensor needs no bytes, but numpy multiplies its other sizes all the same.
    reach = math.prod(max(size, 1) for size in shape) * dtype.itemsize
    if len(shape) > MAX_DIMENSIONS or min(shape, default=0) < 0 or reach > sys.maxsize:
        raise InvalidInput(f"{field}: shape {shape} is not valid", field=f"{field}.shape")
    expected = math.prod(shape) * dtype.itemsize
    if expected != len(message.data):
        raise InvalidInput(
            f"{field}: shape {shape} of {dtype} needs {expected} bytes, got {len(message.data)}",
            field=f"{field}.data",
        )
    array = np.frombuffer(message.data, dtype=dtype).reshape(shape)
    if finite and array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InvalidInput(f"{field}: holds NaN or infinity", field=f"{field}.data")
    return array


def expect(array: Array, *, shape: tuple[int | None, ...], field: str) -> Array:
    """Return `array` where its shape matches (`None` is any size), else raise InvalidInput."""
    fits = array.ndim == len(shape) and all(
        want is None or want == got for want, got in zip(shape, array.shape, strict=True)
    )
    if not fits:
        raise InvalidInput(
            f"{field}: shape {array.shape}, expected {shape}", field=f"{field}.shape"
        )
    return array


def pack_arrays(arrays: dict[str, Array], metadata: dict[str, str] | None = None) -> bytes:
    """Return arrays as safetensors bytes; the same arrays always give the same bytes."""
    ordered = {name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}
    return save(ordered, metadata=metadata)


def unpack_arrays(data: bytes, *, what: str = "blob") -> dict[str, Array]:
    """Return the arrays of safetensors bytes. Raises InvalidInput where they are not valid
    safetensors."""
    try:
        return dict(load(data))
    except (SafetensorError, ValueError, KeyError) as error:
        raise InvalidInput(f"{what} is not a valid safetensors file: {error}") from error
