"""Hostile inputs, each from a seed and a number alone, and files to keep and replay them."""

from __future__ import annotations

import base64
import itertools
import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from tests.hostile import files, http, messages, values
from tests.hostile.entry import Rpc
from tests.hostile.http import Route


@dataclass(frozen=True)
class Input:
    """What is sent: messages of an RPC, bytes of an HTTP request, or values for the cache."""

    kind: str
    label: str
    target: str
    method: str
    parts: tuple[bytes, ...]
    metadata: tuple[tuple[str, str], ...] = ()

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        found = asdict(self) | {"parts": [base64.b85encode(one).decode() for one in self.parts]}
        path.write_text(json.dumps(found))

    @staticmethod
    def load(path: Path) -> Input:
        """Read what `save` wrote."""
        found = json.loads(path.read_text())
        found["parts"] = tuple(base64.b85decode(one) for one in found["parts"])
        found["metadata"] = tuple((name, value) for name, value in found["metadata"])
        return Input(**found)


class Target(Protocol):
    """What inputs are made for and sent to."""

    @property
    def names(self) -> dict[str, list[Any]]: ...
    @property
    def rpcs(self) -> list[Rpc]: ...
    @property
    def ports(self) -> dict[str, int]: ...
    @property
    def http_port(self) -> int: ...
    @property
    def socket(self) -> Path: ...


class Source:
    """Makes the inputs of a campaign: every entry point in turn."""

    def __init__(self, world: Target, seed: int) -> None:
        self._names, self._seed = world.names, seed
        self.routes = http.routes(world.http_port)
        make_rpc: Callable[[random.Random, Rpc], Input] = self._rpc
        self._turns: list[Callable[[random.Random], Input]] = []
        for rpc, route in itertools.zip_longest(world.rpcs, self.routes):
            if rpc is not None:
                self._turns.append(lambda rng, rpc=rpc: make_rpc(rng, rpc))  # type: ignore[misc]
            if route is not None:
                self._turns.append(lambda rng, route=route: self._http(rng, route))  # type: ignore[misc]
        self._turns += [self._cache] * 2
        self.points = len(self._turns) - 1

    def make(self, number: int) -> Input:
        """Return input `number`."""
        rng = random.Random(f"{self._seed}/{number}")
        return self._turns[number % len(self._turns)](rng)

    def _rpc(self, rng: random.Random, rpc: Rpc) -> Input:
        count = rng.choice((0, 1, 3)) if rpc.method.client_streaming else 1
        parts = tuple(self._message(rng, rpc) for _ in range(count))
        return Input("rpc", rpc.label, rpc.target, rpc.path, parts, _metadata(rng))

    def _message(self, rng: random.Random, rpc: Rpc) -> bytes:
        kind, how = rpc.method.input_type, rng.random()
        if how < 0.15:
            return messages.hostile(rng, kind).SerializeToString()
        good = messages.plausible(rng, kind, self._names, rpc.method.name)
        if how < 0.25:
            return good.SerializeToString()
        if how < 0.85:
            return messages.mutate(rng, good).SerializeToString()
        return messages.wire(rng, good.SerializeToString())

    def _http(self, rng: random.Random, route: Route) -> Input:
        return Input(
            "http", route.label, "gateway", route.label, (http.request(rng, route, self._names),)
        )

    def _cache(self, rng: random.Random) -> Input:
        return Input("cache", "redis value", "gateway", "", (_cached(rng),))


def _cached(rng: random.Random) -> bytes:
    """A value of the embedding cache with a header that lies."""
    head = rng.choice((b"SHR1", b"SHI1", b"")) + rng.randbytes(rng.choice((0, 4, 16, 32)))
    return files.damaged(rng, head + files.array(rng))


def _metadata(rng: random.Random) -> tuple[tuple[str, str], ...]:
    if rng.random() < 0.8:
        return ()
    name = rng.choice(
        ("x-request-id", "x-job-id", "traceparent", "tracestate", "authorization", "cookie")
    )
    text = "".join(c for c in values.text(rng)[:1000] if " " <= c <= "~")
    return ((name, text),)
