"""Photos, and servicers behind a real gRPC server."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc.aio
import numpy as np
from PIL import Image

from services.common.interceptors import ErrorInterceptor


def make_photo(seed: int = 0, size: tuple[int, int] = (40, 30), kind: str = "JPEG") -> bytes:
    """A smooth random photo: its perceptual hash is far from that of another seed."""
    small = np.random.default_rng(seed).integers(0, 255, (9, 10, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


@asynccontextmanager
async def serving(register: Callable[[grpc.aio.Server], object]) -> AsyncIterator[grpc.aio.Channel]:
    """A real gRPC server on a free port with the errors of production, and a channel to it."""
    server = grpc.aio.server(interceptors=[ErrorInterceptor()])
    register(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield channel
    finally:
        await server.stop(None)
