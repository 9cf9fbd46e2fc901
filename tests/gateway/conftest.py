"""Real parts for the gateway's tests: photos, a blob store, tables in SQLite or PostgreSQL."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio
import numpy as np
import pytest
from PIL import Image

from services.common.blobs import BlobStore
from services.common.catalogue import load_catalogue
from services.common.interceptors import ErrorInterceptor
from services.gateway.datasets.readers import Reading, UriPolicy
from services.gateway.store import Base, Store

Photo = Callable[..., bytes]


def make_photo(seed: int = 0, size: tuple[int, int] = (40, 30), kind: str = "JPEG") -> bytes:
    """A smooth random photo: its perceptual hash is far from that of another seed."""
    small = np.random.default_rng(seed).integers(0, 255, (9, 10, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


@pytest.fixture
def photo() -> Photo:
    return make_photo


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(str(tmp_path / "blobs"))


@pytest.fixture
def reading(tmp_path: Path, blobs: BlobStore) -> Reading:
    """What a gateway on loopback reads with; nothing is fetched into its cache."""
    policy = UriPolicy(loopback=True)
    return Reading(policy, blobs, load_catalogue(), tmp_path / "cache", max_image_bytes=1 << 20)


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real PostgreSQL server on a socket in a temporary folder."""
    pgserver = pytest.importorskip("pgserver")
    server = pgserver.get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="stop")
    yield server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
    server.cleanup()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    found = Store(f"sqlite:///{tmp_path}/gateway.db")
    yield found
    found.close()


@pytest.fixture(params=["sqlite", "postgres"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """The tables in each kind of database, empty."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/any.db"
    else:
        url = request.getfixturevalue("postgres_url")
    found = Store(url)
    with found.write() as session:
        for table in reversed(Base.metadata.sorted_tables):
            session.execute(table.delete())
    yield found
    found.close()


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
