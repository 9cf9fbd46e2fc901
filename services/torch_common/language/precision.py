"""The type that language models compute in: float32, or bfloat16 where that is faster."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from services.common.errors import InvalidInput

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_CPU_INFO = Path("/proc/cpuinfo")


def dtype_of(precision: str, device: str) -> torch.dtype:
    """The dtype of `float32`, `bfloat16`, or "" for the device's own. Raises InvalidInput."""
    if precision and precision not in _DTYPES:
        raise InvalidInput(
            f"precision: {precision[:20]!r} is none of {list(_DTYPES)}", field="precision"
        )
    return _DTYPES[precision] if precision else default_dtype(device)


def default_dtype(device: str) -> torch.dtype:
    """bfloat16 where the device multiplies it faster than float32, else float32."""
    if device.startswith("cuda"):
        fast = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    else:
        fast = _CPU_INFO.exists() and has_fast_bfloat16(_CPU_INFO.read_text())
    return torch.bfloat16 if fast else torch.float32


def has_fast_bfloat16(cpu_info: str) -> bool:
    """Whether a processor, as /proc/cpuinfo describes it, gains by bfloat16.

    By its kind and never by a timing, so that all processes of a machine agree. AMD's AVX-512 BF16
    is twice as fast as float32 there; Intel's without AMX, as many virtual machines show it, half
    as fast (2 cores: 150 against 300 GFLOP/s).
    """
    flags = _field(cpu_info, "flags").split()
    return "amx_bf16" in flags or (
        "avx512_bf16" in flags and _field(cpu_info, "vendor_id") == "AuthenticAMD"
    )


def device_name(device: str) -> str:
    """What a device is called by its maker, for reports of times measured on it."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    known = _field(_CPU_INFO.read_text(), "model name") if _CPU_INFO.exists() else ""
    return known or platform.machine()


def _field(cpu_info: str, name: str) -> str:
    """The first value of a field."""
    for line in cpu_info.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""
