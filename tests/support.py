"""What several tests need: images that are good and bad, and services as real processes."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image


def photo(seed: int = 0, *, size: tuple[int, int] = (320, 240), form: str = "JPEG") -> bytes:
    """Return an encoded image of smooth coloured blobs, different for every seed."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    small.resize(size, Image.Resampling.BICUBIC).save(buffer, form)
    return buffer.getvalue()


def png_bomb(side: int = 30_000) -> bytes:
    """Return a small PNG whose pixels would fill gigabytes: rows of zeros deflate to nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    packer = zlib.compressobj(9)
    row = bytes(1 + 3 * side)
    body = b"".join(packer.compress(row) for _ in range(64)) + packer.flush()
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


def hostile_batch() -> dict[str, tuple[bytes, bool]]:
    """Return (bytes, whether it is usable) by name: one of every kind of input seen in the wild."""
    good = photo(1)
    sixteen, cmyk, dot = io.BytesIO(), io.BytesIO(), io.BytesIO()
    Image.fromarray((np.arange(64 * 64).reshape(64, 64) * 16).astype(np.uint16)).save(
        sixteen, "PNG"
    )
    Image.open(io.BytesIO(good)).convert("CMYK").save(cmyk, "JPEG")
    Image.new("RGB", (1, 1), (200, 10, 10)).save(dot, "PNG")
    return {
        "good.jpg": (good, True),
        "truncated.jpg": (good[: len(good) // 2], False),
        "dot.png": (dot.getvalue(), True),
        "sixteen-bit.png": (sixteen.getvalue(), True),
        "cmyk.jpg": (cmyk.getvalue(), True),
        "bomb.png": (png_bomb(), False),
        "empty": (b"", False),
        "text.txt": (b"not an image at all", False),
    }


def free_port() -> int:
    """Return a port that was free a moment ago."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_ready(address: str, *, timeout_s: float = 300.0, process: subprocess.Popen[str]) -> None:
    """Wait until a service's health is SERVING. Raises RuntimeError where it ends before."""
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for _ in range(int(timeout_s / 0.1)):  # looks, not time: a machine may stand still
            if process.poll() is not None:
                raise RuntimeError(f"the service at {address} ended with {process.returncode}")
            try:
                reply = stub.Check(health_pb2.HealthCheckRequest(), timeout=2)
                if reply.status == health_pb2.HealthCheckResponse.SERVING:
                    return
            except grpc.RpcError:
                pass
            time.sleep(0.1)
    raise RuntimeError(f"the service at {address} was not ready in {timeout_s} s")


def resident_mib(pid: int) -> float:
    """Return a process's peak resident memory."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmHWM")


@dataclass
class Service:
    """A running service process."""

    name: str
    address: str
    process: subprocess.Popen[str]
    log: Path

    def kill(self) -> None:
        """End it as a power cut would."""
        self.process.kill()
        self.process.wait()


@contextmanager
def service(name: str, folder: Path, port: int = 0, **environment: str) -> Iterator[Service]:
    """Run `python -m services.{name}` with its data under `folder` until the block ends."""
    started = start_service(name, folder, port or free_port(), **environment)
    try:
        wait_ready(started.address, process=started.process)
        yield started
    finally:
        started.process.terminate()
        try:
            started.process.wait(30)
        except subprocess.TimeoutExpired:
            started.kill()


def start_service(name: str, folder: Path, port: int, **environment: str) -> Service:
    """Start a service process and return at once."""
    prefix = name.upper()
    given = {
        f"{prefix}_PORT": str(port),
        f"{prefix}_BLOB_URL": str(folder / "blobs"),
        "GATEWAY_HTTP_PORT": "-1",
        **environment,
    }
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{name}.log"
    with log.open("a") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", f"services.{name}"],
            env={**os.environ, **given},
            stdout=out,
            stderr=out,
            text=True,
        )
    return Service(name, f"127.0.0.1:{port}", process, log)
