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
from tests.hostile.answers import Answer
from tests.hostile.inputs import Input, Target
from tests.hostile.names import ENCODER
from tests.support import photo

_PLENTY = 3
_LISTEN_S = 1.5
"""How long a stream that may stay open is read."""
_BROKEN = {"INTERNAL", "UNKNOWN", "DATA_LOSS", "500", "dead", "cut"}
_GOOD = b"GET /v1/info HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
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
                stream = call(data, timeout=self._deadline_s, metadata=one.metadata)
                answers = list(_listened(stream, is_watch=kind.name.startswith("Watch")))
            else:
                answers = [call(data, timeout=self._deadline_s, metadata=one.metadata)]
        except grpc.RpcError as error:
            return error.code().name, (error.details() or "")[:300]
        inner = {code for answer in answers for code in messages.statuses_of(rpc.read(answer))}
        worse = [_NUMBERS[code] for code in inner if code in _NUMBERS]
        return (worse[0], "an item or the resource itself has this status") if worse else ("OK", "")

    def _http(self, one: Input) -> tuple[str, str]:
        answer = self._exchange(one.parts[0])
        if answer.status == "closed":  # a refusal may cut the line while we still send
            good = self._exchange(_GOOD)
            if good.status != "200" or not good.is_whole:
                return "dead", f"after it, a good request gets {good.status}"
            return "closed", ""
        said = answer.body[:200].decode(errors="replace")
        bare = answer.is_events or (one.parts[0].startswith(b"HEAD ") and not answer.is_late)
        if answer.is_whole or bare:
            return answer.status, said
        return ("LATE" if answer.is_late else "cut"), f"no whole answer: {said}"

    def _exchange(self, data: bytes) -> Answer:
        """Send bytes, and read what comes until the line is closed or the deadline is over."""
        found, until_s = b"", time.monotonic() + self._deadline_s
        try:
            with socket.create_connection(
                ("127.0.0.1", self._world.http_port), timeout=self._deadline_s
            ) as line:
                _write(line, data)
                while not Answer(found).is_events:
                    line.settimeout(max(until_s - time.monotonic(), 0.001))
                    more = line.recv(1 << 16)
                    if not more:
                        break
                    found += more
        except TimeoutError:
            return Answer(found, is_late=True)
        except OSError:
            return Answer(found) if Answer(found).is_whole else Answer(b"")
        return Answer(found)

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


def _listened(call: grpc.Call, *, is_watch: bool) -> Iterator[bytes]:
    """Yield the first few answers of a stream, and leave one that goes on.

    A watch may have nothing to say; any other must end, or answer first, by its deadline.
    """
    timer = threading.Timer(_LISTEN_S, call.cancel)
    if is_watch:
        timer.start()
    try:
        for at, answer in enumerate(call):
            yield answer
            if at >= _PLENTY:
                call.cancel()
                return
            if at == 0 and not is_watch:
                timer.start()
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.CANCELLED or not timer.finished.is_set():
            raise
    finally:
        timer.cancel()


def _write(line: socket.socket, data: bytes) -> None:
    """Send what the other side takes."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        line.sendall(data)
