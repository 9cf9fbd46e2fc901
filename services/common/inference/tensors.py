"""Tensors of the Open Inference Protocol to and from numpy arrays and lists of bytes.

Elements are raw (row-major, little-endian, each BYTES element behind its length as four bytes) or
in the one repeated field that fits the data type. Whatever a size claims, no more memory is taken
than the message itself has.
"""

from __future__ import annotations

import math
import struct
from typing import Any, TypeAlias

import numpy as np
from stillhouse.inference.v2 import open_inference_pb2 as pb

from services.common.errors import InvalidInput
from services.common.tensors import MAX_DIMENSIONS, Array

InputTensor: TypeAlias = pb.ModelInferRequest.InferInputTensor
OutputTensor: TypeAlias = pb.ModelInferResponse.InferOutputTensor
Message: TypeAlias = InputTensor | OutputTensor

BYTES = "BYTES"
_DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_FIELDS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}
_LENGTH = struct.Struct("<I")


def shape_of(tensor: Message) -> tuple[int, ...]:
    """Return a tensor's shape. Raises InvalidInput for a negative size or too many of them."""
    shape = tuple(tensor.shape)
    if len(shape) > MAX_DIMENSIONS or any(size < 0 for size in shape):
        raise InvalidInput(f"{tensor.name}: shape {shape[:20]} is not valid", field=tensor.name)
    return shape


def array_of(tensor: Message, raw: bytes | None) -> Array:
    """Return a tensor of numbers, read-only; `raw` is None where the elements are in its contents.

    Raises InvalidInput for an unknown data type, a size that does not fit the shape, or NaN.
    """
    dtype, shape = _DTYPES.get(tensor.datatype), shape_of(tensor)
    if dtype is None:
        raise _wrong(tensor, f"data type {tensor.datatype[:20]!r} is not one of {list(_DTYPES)}")
    count = math.prod(shape)
    if raw is None:
        flat = _typed(tensor, dtype, count)
    else:
        if len(raw) != count * dtype.itemsize:
            need = f"{count * dtype.itemsize} bytes, got {len(raw)}"
            raise _wrong(tensor, f"shape {shape} of {tensor.datatype} needs {need}")
        flat = np.frombuffer(raw, dtype)
    if dtype.kind == "f" and not np.isfinite(flat).all():
        raise _wrong(tensor, "holds NaN or infinity")
    return flat.reshape(shape)


def elements_of(tensor: Message, raw: bytes | None) -> list[bytes]:
    """Return the elements of a BYTES tensor, flat. Raises InvalidInput as `array_of` does."""
    count = math.prod(shape_of(tensor))
    if tensor.datatype != BYTES:
        raise _wrong(tensor, f"data type {tensor.datatype[:20]!r}, expected {BYTES}")
    if raw is None:
        return list(_contents(tensor, count))
    if count * _LENGTH.size > len(raw):
        raise _wrong(tensor, f"{count} elements do not fit {len(raw)} bytes")
    found: list[bytes] = []
    at = 0
    for _ in range(count):
        start = at + _LENGTH.size
        if start > len(raw):
            raise _wrong(tensor, f"ends inside element {len(found)}")
        at = start + _LENGTH.unpack_from(raw, at)[0]
        found.append(raw[start:at])
    if at != len(raw):
        raise _wrong(tensor, f"its {count} elements take {at} bytes, got {len(raw)}")
    return found


def raw_array(array: Array) -> tuple[str, bytes]:
    """Return the data type and raw contents of numbers. Raises TypeError for an unknown dtype."""
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    if little.dtype not in _NAMES:
        raise TypeError(f"dtype {array.dtype} has no data type in the protocol")
    return _NAMES[little.dtype], little.tobytes()


def raw_elements(elements: list[bytes]) -> bytes:
    """Return the raw contents of a BYTES tensor."""
    return b"".join(part for one in elements for part in (_LENGTH.pack(len(one)), one))


def _typed(tensor: Message, dtype: np.dtype[Any], count: int) -> Array:
    values = _contents(tensor, count)
    if dtype.kind not in "iu":
        return np.array(values, dtype)
    wide = np.array(values, np.uint64 if dtype.itemsize == 8 and dtype.kind == "u" else np.int64)
    limits = np.iinfo(dtype)
    if count and (int(wide.min()) < limits.min or int(wide.max()) > limits.max):
        raise _wrong(tensor, f"holds values that {tensor.datatype} has not")
    return wide.astype(dtype)


def _contents(tensor: Message, count: int) -> Any:
    """The repeated field of the tensor's data type, of the right length."""
    wanted = _FIELDS.get(tensor.datatype)
    if wanted is None:
        raise _wrong(tensor, f"{tensor.datatype} has to be sent as raw contents")
    if any(field.name != wanted for field, _ in tensor.contents.ListFields()):
        raise _wrong(tensor, f"{tensor.datatype} is sent in {wanted} alone")
    values = getattr(tensor.contents, wanted)
    if len(values) != count:
        raise _wrong(tensor, f"shape {tuple(tensor.shape)} needs {count} values, got {len(values)}")
    return values


def _wrong(tensor: Message, why: str) -> InvalidInput:
    name = tensor.name[:80]
    return InvalidInput(f"{name}: {why}", field=name)
