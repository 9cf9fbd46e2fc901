"""HTTP requests as raw bytes: the routes of the OpenAPI document, and what no client would send."""

from __future__ import annotations

import gzip
import json
import random
import re
import urllib.request
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from google.protobuf import json_format
from google.protobuf.descriptor import MethodDescriptor

from tests.hostile import files, messages, values
from tests.hostile.entry import contract

_VARIABLE = re.compile(r"\{([^}]+)\}")
_LEAVES: tuple[Any, ...] = (
    None, True, 0, -1, 1.5, 10**30, -(2**63), "", "x", [], {}, [[]], {"a": {}}, "\ud800", "9" * 50,
    [None], {"": 1},
    "NaN", "Infinity", "-Infinity", "1e400", ["a", 1], "AAAA", "!not base64", {"@type": "x"},
)  # fmt: skip
_BODIES = (
    b"{", b"[]", b"null", b'"x"', b"[" * 200_000, b'{"a":' * 50_000,
    b'{"pageSize": ' + b"9" * 100_000 + b"}",
    b'{"project": "a", "project": "b"}', b"\xff\xfe{\x00}\x00", b'{"x": 1e999999}',
    b"\xef\xbb\xbf{}", b"{}garbage",
    b'{"test_share": NaN, "val_share": -Infinity}', b'{"datasetId": "\\ud800"}', b"", b"{'a': 1}",
    b"\0" * 100,
)  # fmt: skip
_KINDS = ("application/json", "application/json; charset=utf-16", "text/plain", "",
    "multipart/form-data; boundary=x",
          "application/x-protobuf", "application/octet-stream", "application/json;;;=",
          "x" * 5000)  # fmt: skip
_HEADERS = (
    ("Authorization", "Bearer \xff\xfe"), ("Cookie", "a" * 9000), ("X-Request-Id", "../\x01"),
    ("traceparent", "00-zz"),
    ("Last-Event-ID", "9" * 400), ("Range", "bytes=0-18446744073709551615,-"), ("If-None-Match",
    '"*"'), ("Expect", "100-continue"),
    ("Accept", "text/event-stream"), ("Accept-Encoding", "x;q=9"), ("Content-Encoding", "gzip"),
    ("Upgrade", "websocket"),
    ("X-Forwarded-For", "127.0.0.1"), ("X-HTTP-Method-Override", "DELETE"), ("Transfer-Encoding",
    "gzip, chunked"),
    ("Content-Length", "-1"), ("Content-Length", "9" * 30), ("Content-Length", "+5"), ("Origin",
    "null"), ("Host", "evil.example"),
)  # fmt: skip
_PATHS = ("/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd",
    "/assets/..%2f..%2fetc/passwd", "/v1/%00", "/\\..\\x",
          "/v1/projects/%FF%FE/datasets", "/v1/projects/default/datasets/%2e%2e%2fx",
          "http://evil/v1/info", "*", "/" + "a/" * 20_000,
          "/v1/projects/default/images/..%2F..%2Fx", "/openapi.json/", "/index.html%00.js",
          "/v1/projects/default:x", "/?%ZZ", "")  # fmt: skip


@dataclass(frozen=True)
class Route:
    """One operation of the document, with the RPC it stands for where it has one."""

    verb: str
    path: str
    method: MethodDescriptor | None

    @property
    def label(self) -> str:
        return f"{self.verb} {self.path}"


def routes(port: int) -> list[Route]:
    """Return the operations that a gateway's own document names."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/openapi.json", timeout=60) as answer:
        document = json.load(answer)
    known = {
        m.name: m
        for s in contract().values()
        if s.full_name.startswith("stillhouse.gateway")
        for m in s.methods
    }
    return [
        Route(verb.upper(), path, known.get(one["operationId"]))
        for path, item in document["paths"].items()
        for verb, one in item.items()
    ]


def request(rng: random.Random, route: Route, names: messages.Names) -> bytes:
    """Return the bytes of one hostile request to a route."""
    if rng.random() < 0.12:
        return _raw(rng, route)
    path = _VARIABLE.sub(lambda found: _segment(rng, found[1], names), route.path)
    body, kind = b"", "application/json"
    if route.method is None and route.verb == "POST":
        body, kind = files.file(rng), "application/octet-stream"
    elif route.verb == "POST":
        body = _body(rng, route, names)
    else:
        path += (
            "?" + "&".join(_pair(rng, route, names) for _ in range(rng.choice((0, 1, 3))))
            if rng.random() < 0.8
            else ""
        )
    return _request(rng, route.verb, path, body, kind)


def _segment(rng: random.Random, name: str, names: messages.Names) -> str:
    if rng.random() < 0.7:
        known = {"student": names["student"], "dataset": names["dataset"], "model": names["model"],
        "encoder": names["encoder"],
                 "digest": names["digest"], "distillationJob": names.get("job", [""]),
                 "version": ["1"]}  # fmt: skip
        pool = known.get(name, ["default"])
        return str(rng.choice(pool)).rpartition("/")[2]
    return quote(values.text(rng)[:3000], safe=rng.choice(("", "/%.", "/")))


def _pair(rng: random.Random, route: Route, names: messages.Names) -> str:
    fields = list(route.method.input_type.fields) if route.method else []
    known = [rng.choice((one.name, one.json_name)) for one in fields] or ["sizePx", "box"]
    name = rng.choice([*known, "a.b.c", "name.", "", "x" * 400, "pageSize"])
    value = rng.choice(
        [
            *map(str, values.WHOLE),
            "nan,nan,nan,nan",
            "0,0,1,1",
            "1e400,0,1,1",
            values.text(rng)[:3000],
        ]
    )
    return f"{quote(name)}={quote(value, safe=rng.choice(('', '/%&=+')))}"


def _body(rng: random.Random, route: Route, names: messages.Names) -> bytes:
    if rng.random() < 0.2 or route.method is None:
        return rng.choice(_BODIES)
    made = messages.plausible(rng, route.method.input_type, names, route.method.name)
    if rng.random() < 0.5:
        made = messages.mutate(rng, made)
    try:
        found = json_format.MessageToDict(made)
    except (json_format.SerializeToJsonError, TypeError):  # a time or a type that JSON has not
        return rng.choice(_BODIES)
    if rng.random() < 0.6:
        _spoil(rng, found)
    return json.dumps(found).encode()


def _spoil(rng: random.Random, found: Any) -> None:
    """Put something of another type somewhere into a JSON value."""
    while isinstance(found, dict | list) and found:
        keys = list(found) if isinstance(found, dict) else list(range(len(found)))
        key = rng.choice(keys)
        if not isinstance(found[key], dict | list) or rng.random() < 0.4:
            found[key] = rng.choice(_LEAVES)
            return
        found = found[key]
    if isinstance(found, dict):
        found[rng.choice(("project", "x", "job", "__proto__"))] = rng.choice(_LEAVES)


def _request(rng: random.Random, verb: str, path: str, body: bytes, kind: str) -> bytes:
    headers = [("Host", "127.0.0.1"), ("Connection", "close")]
    if rng.random() < 0.15:
        kind = rng.choice(_KINDS)
    if rng.random() < 0.25:
        headers.append(rng.choice(_HEADERS))
    if body and rng.random() < 0.1:
        body = gzip.compress(body)
    if rng.random() < 0.08:
        verb = rng.choice(("HEAD", "PUT", "OPTIONS", "TRACE", "get", "X" * 300, "PATCH", "DELETE"))
    if body:
        headers.append(("Content-Type", kind))
        if rng.random() < 0.2:
            headers.append(("Transfer-Encoding", "chunked"))
            body = _chunked(rng, body)
        else:
            headers.append(("Content-Length", str(len(body))))
    return _head(f"{verb} {path} HTTP/1.1", headers) + body


def _head(line: str, headers: list[tuple[str, str]]) -> bytes:
    lines = [line, *(f"{name}: {value}" for name, value in headers), "", ""]
    return "\r\n".join(lines).encode("latin-1", "replace")


def _chunked(rng: random.Random, body: bytes) -> bytes:
    """Return a chunked body, often a wrong one."""
    good = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    return rng.choice((good, good, b"zz\r\n" + body, b"ffffffffffffffffff\r\n" + body, b"-1\r\n",
        good[:-4],
                       b"5;" + b"x" * 70_000 + b"\r\n",
                       b"0\r\nX: " + b"y" * 70_000 + b"\r\n\r\n"))  # fmt: skip


def _raw(rng: random.Random, route: Route) -> bytes:
    """Return bytes that are hardly HTTP."""
    host = "Host: 127.0.0.1\r\nConnection: close\r\n"
    line = f"{route.verb} {route.path} HTTP/1.1\r\n"
    many = "".join(f"X-{at}: y\r\n" for at in range(3000))
    choices = (
        f"GET {rng.choice(_PATHS)} HTTP/1.1\r\n{host}\r\n",
        f"GET /v1/info HTTP/1.1\r\n{host}{many}\r\n",
        f"GET /v1/info HTTP/9.9\r\n{host}\r\n",
        f"GET /v1/info HTTP/1.1\r\nHost: a\r\nHost: b\r\n{host}\r\n",
        f"{line}{host}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /\r\n",
        f"{line}{host}Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        f"GET / HTTP/1.1\r\n{host} folded: x\r\n\r\n",
        f"GET / HTTP/1.1\r\n{host}Bad Header: x\r\n\r\n",
        "GET /\r\n\r\n", "\r\n" * 500, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "\x16\x03\x01\x02\0\x01", "A" * 100_000,
    )  # fmt: skip
    return rng.choice(choices).encode("latin-1", "replace")
