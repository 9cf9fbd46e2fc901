"""Single values of every protobuf type that a careful program has to refuse, or to bear."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import FieldDescriptor as F

from tests.hostile import files

TEXTS = (
    "", " ", "\0", "\n", "a" * 64, "x" * 5_000, "\u202egnp.exe", "\U0001d561rojects/default",
    "é" * 200,
    "../../etc/passwd", "projects/default", "projects/../models/x", "projects//models/",
    "projects/-/jobs/-",
    "projects/default/datasets/" + "a" * 70, "projects/default/students/a/versions/" + "9" * 40,
    "projects/default/students/s/versions/-1", "projects/" * 400, "%2e%2e%2f",
    "a\r\nSet-Cookie: a=b",
    "'; DROP TABLE jobs; --", "{}", "[]", "null", "NaN", "1e999", "-0", "9" * 400,
    "<script>alert(1)</script>",
    "${jndi:ldap://x}", "{{7*7}}", "%s%n%x", "\ufeff", "\u2028", "\x7f\x1b[31m", "🏴" * 50, "٣",
    "0" * 64, "f" * 64, "G" * 64, "latest", "builtin:", "builtin:../x", "builtin:fruit?max=-1",
)  # fmt: skip
URIS = (
    "file:///dev/zero", "file:///dev/stdin", "/dev/random", "file:///proc/self/mem",
    "file:///etc/passwd",
    "file:///nowhere", "file:relative", "s3://127.0.0.1/x", "http://127.0.0.1:9/a.zip",
    "http://[::1", "ftp://x/y",
    "file:///tmp\0x", "memory://x", "a::b::file:///etc", "builtin:fruit-coarse?max=9999999999",
    "data:,x",
    "file:///dev/zero#label=a&image=b", "zip://x", "file://" + "a/" * 3000, "github://x:y@z/",
    "local:///etc/passwd", "reference://{}", "http://user:pass@localhost:1/", "//host/share",
    "simplecache::x",
)  # fmt: skip
PATTERNS = (
    "(a+)+$", "(", "[", "a{1000}{1000}", "a{100000}", "(?<=x)y", r"\1", r"\p{Greek}",
    "(?P<n>a)(?P<n>b)",
    "((((((((((" * 200, "." * 20_000, "(x+x+)+y", r"[\d-\w]", "(?i)" * 50, "\\", "a**",
    "(|a|a|a)*b",
)  # fmt: skip
WHOLE = (
    0,
    1,
    -1,
    2,
    7,
    63,
    256,
    257,
    1000,
    10**6,
    2**31 - 1,
    -(2**31),
    2**31,
    2**32,
    2**53,
    2**62,
    2**63 - 1,
    -(2**63),
)
REAL = (
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    1e-300,
    5e-324,
    1e308,
    -1e308,
    1e9,
    float("inf"),
    -float("inf"),
    float("nan"),
)
_RANGES = {
    F.CPPTYPE_INT32: (-(2**31), 2**31 - 1), F.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    F.CPPTYPE_UINT32: (0, 2**32 - 1), F.CPPTYPE_UINT64: (0, 2**64 - 1),
    F.CPPTYPE_ENUM: (-(2**31), 2**31 - 1),
}  # fmt: skip


def value(rng: random.Random, field: F) -> Any:
    """Return a hostile value of a field that is no message."""
    if field.cpp_type in _RANGES:
        low, high = _RANGES[field.cpp_type]
        return min(max(rng.choice((*WHOLE, low, high)), low), high)
    if field.cpp_type == F.CPPTYPE_FLOAT:
        return rng.choice([one for one in REAL if not 1e38 < abs(one) < float("inf")])
    if field.cpp_type == F.CPPTYPE_DOUBLE:
        return rng.choice(REAL)
    if field.cpp_type == F.CPPTYPE_BOOL:
        return rng.random() < 0.5
    return blob(rng) if field.type == F.TYPE_BYTES else text(rng, field.name)


def text(rng: random.Random, name: str = "") -> str:
    """Return a hostile text, fit for what a field of that name is read as."""
    pool: tuple[str, ...] = TEXTS
    if name == "uri" and rng.random() < 0.9:
        pool = URIS
    elif name in ("pattern", "stop") and rng.random() < 0.9:
        pool = PATTERNS
    elif rng.random() < 0.05:
        return rng.choice(("y" * 200_000, "\u0301" * 9_000, "a " * 50_000))
    return rng.choice(pool)


def blob(rng: random.Random) -> bytes:
    """Return hostile bytes: images, archives, numbers or noise."""
    makers: tuple[Callable[[random.Random], bytes], ...] = (
        files.image,
        files.image,
        files.file,
        files.array,
    )
    if rng.random() < 0.2:
        return rng.randbytes(rng.choice((0, 1, 3, 64, 5000)))
    return rng.choice(makers)(rng)
