"""Sends one input and tells what came of it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import grpc
import redis
from stillhouse.common.v1 import items_pb2
from stillhouse.gateway.v1 import models_pb2, models_pb2_grpc

from tests.hostile import messages
from tests.hostile.inputs import Input, Target
from tests.hostile.names import ENCODER
from tests.support import photo

_PLENTY = 3
_LISTEN_S = 1.5
"""How long a stream that may stay open is read."""
_BROKEN = {"INTERNAL", "UNKNOWN", "DATA_LOSS", "500"}
_NUMBERS = {2: "UNKNOWN", 13: "INTERNAL", 15: "DATA_LOSS"}


@dataclass(frozen=True)
class Outcome:
    """What an input led to: a code, seconds, and a few words."""

    code: str
    seconds: float
    said: str = ""

    @property
    def is_internal(self) -> bool:
        return self.code in _BROKEN

    @property
    def is_late(self) -> bool:
        return self.code in ("LATE", "DEADLINE_EXCEEDED")


class Sender:
    """Sends inputs to a world; one for all threads."""

    def __init__(self, world: Target, deadline_s: float) -> None:
        self._world, self._deadline_s = world, deadline_s
        self._rpcs = {(one.target, one.path): one for one in world.rpcs}
        options = [
            ("grpc.max_receive_message_length", 64 << 20),
            ("grpc.max_send_message_length", 64 << 20),
        ]
        self._channels = {
            name: grpc.insecure_channel(f"127.0.0.1:{port}", options=options)
            for name, port in world.ports.items()
        }
        self._redis = redis.Redis(unix_socket_path=str(world.socket))
        self._cache_lock = threading.Lock()

    def close(self) -> None:
        """Close the connections."""
        for channel in self._channels.values():
            channel.close()
        self._redis.close()

    def send(self, one: Input) -> Outcome:
        """Send an input and wait for its end, a little over the deadline at most."""
        start_s = time.monotonic()
        code, said = getattr(self, f"_{one.kind}")(one)
        return Outcome(code, time.monotonic() - start_s, said)

    def _rpc(self, one: Input) -> tuple[str, str]:
        rpc = self._rpcs[one.target, one.method]
        channel, kind = self._channels[one.target], rpc.method
        data = iter(one.parts) if kind.client_streaming else one.parts[0]
        ways = (
            "stream" if one else "unary" for one in (kind.client_streaming, kind.server_streaming)
        )
        form = "_".join(ways)
        call = getattr(channel, form)(one.method)  # bytes in, bytes out
        try:
            if kind.server_streaming:
                answers = list(
                    _listened(call(data, timeout=self._deadline_s, metadata=one.metadata))
                )
            else:
                answers = [call(data, timeout=self._deadline_s, metadata=one.metadata)]
        except grpc.RpcError as error:
            return error.code().name, (error.details() or "")[:300]
        inner = {code for answer in answers for code in messages.statuses_of(rpc.read(answer))}
        worse = [_NUMBERS[code] for code in inner if code in _NUMBERS]
        return (worse[0], "an item or the resource itself has this status") if worse else ("OK", "")

    def _http(self, one: Input) -> tuple[str, str]:
        found = b""
        try:
            with socket.create_connection(
                ("127.0.0.1", self._world.http_port), timeout=self._deadline_s
            ) as line:
                _write(line, one.parts[0])
                line.settimeout(self._deadline_s)
                while len(found) < 4096 and (more := line.recv(4096)):
                    found += more
                    if b"text/event-stream" in found:
                        break
        except TimeoutError:
            return ("LATE", "no whole answer") if not found else (_status(found), "")
        except OSError:
            pass  # a refusal may cut the line while we still send
        return _status(found), found.partition(b"\r\n\r\n")[2][:200].decode(errors="replace")

    def _cache(self, one: Input) -> tuple[str, str]:
        """Overwrite all cached embeddings with the value, and ask for one that was there."""
        items = [items_pb2.ImageInput(data=photo(1))]
        stub = models_pb2_grpc.ModelServiceStub(self._channels["gateway"])
        ask = models_pb2.EmbedProjectImagesRequest(encoder=ENCODER, items=items)
        with self._cache_lock:
            for key in self._redis.scan_iter(count=1000):
                self._redis.set(key, one.parts[0])
            try:
                answer = stub.EmbedProjectImages(ask, timeout=self._deadline_s)
            except grpc.RpcError as error:
                return error.code().name, (error.details() or "")[:300]
        codes = [_NUMBERS[code] for code in messages.statuses_of(answer) if code in _NUMBERS]
        return (codes or ["OK"])[0], ""


def _listened(call: grpc.Call) -> Iterator[bytes]:
    """Yield the first few answers of a stream, and leave one that goes on."""
    timer = threading.Timer(_LISTEN_S, call.cancel)
    timer.start()
    try:
        for at, answer in enumerate(call):
            yield answer
            if at >= _PLENTY:
                call.cancel()
                return
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.CANCELLED:
            raise
    finally:
        timer.cancel()


def _write(line: socket.socket, data: bytes) -> None:
    """Send what the other side takes."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        line.sendall(data)


def _status(found: bytes) -> str:
    words = found.split(b" ", 2)
    return (
        words[1].decode(errors="replace")[:3]
        if len(words) > 2 and found.startswith(b"HTTP/1")
        else "closed"
    )
