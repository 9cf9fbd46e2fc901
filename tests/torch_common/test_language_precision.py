"""Which type a device computes language models in."""

from __future__ import annotations

import pytest
import torch

from services.common.errors import InvalidInput
from services.torch_common.language.precision import default_dtype, dtype_of, has_fast_bfloat16


@pytest.mark.parametrize(
    ("vendor", "flags", "fast"),
    [
        ("AuthenticAMD", "avx512f avx512_bf16 avx512_vnni", True),
        ("AuthenticAMD", "avx2 avx512f", False),
        ("GenuineIntel", "avx512f avx512_bf16 avx512_fp16", False),
        ("GenuineIntel", "avx512f avx512_bf16 amx_bf16 amx_tile", True),
        ("", "", False),
    ],
)
def test_bfloat16_is_taken_where_it_is_fast(vendor: str, flags: str, fast: bool) -> None:
    info = f"processor\t: 0\nvendor_id\t: {vendor}\nmodel name\t: X: Y\nflags\t\t: {flags}\n"
    assert has_fast_bfloat16(info * 2) == fast


def test_what_is_asked_for_goes_before_the_devices_own() -> None:
    assert dtype_of("float32", "cpu") == torch.float32
    assert dtype_of("bfloat16", "cpu") == torch.bfloat16
    assert dtype_of("", "cpu") == default_dtype("cpu")
    with pytest.raises(InvalidInput, match="precision"):
        dtype_of("int4", "cpu")
