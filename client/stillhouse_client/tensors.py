"""Reads the tensors of answers."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from stillhouse.common.v1 import tensor_pb2

from stillhouse_client.errors import ServerFault

_DTYPES = {
    tensor_pb2.D_TYPE_FLOAT16: "<f2",
    tensor_pb2.D_TYPE_FLOAT32: "<f4",
    tensor_pb2.D_TYPE_FLOAT64: "<f8",
    tensor_pb2.D_TYPE_UINT8: "<u1",
    tensor_pb2.D_TYPE_INT32: "<i4",
    tensor_pb2.D_TYPE_INT64: "<i8",
}


def to_floats(tensor: tensor_pb2.Tensor) -> NDArray[np.float64]:
    """Return a tensor as float64 of its shape. Raises ServerFault where it is not well formed."""
    code = _DTYPES.get(tensor.dtype)
    size = math.prod(tensor.shape)
    if code is None or len(tensor.data) != size * np.dtype(code).itemsize:
        raise ServerFault(f"tensor of type {tensor.dtype} and shape {list(tensor.shape)} is broken")
    return np.frombuffer(tensor.data, code).astype(np.float64).reshape(list(tensor.shape))
