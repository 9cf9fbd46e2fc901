"""Real parts for the gateway's tests: photos, a blob store, tables in SQLite or PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.common.blobs import BlobStore
from services.common.catalogue import load_catalogue
from services.gateway.datasets.readers import Reading, UriPolicy
from services.gateway.store import Base, Store
from tests.gateway.lab import lab, one_lab
from tests.gateway.parts import make_photo, serving
from tests.gateway.student_world import gateway, world

__all__ = ["gateway", "lab", "make_photo", "one_lab", "serving", "world"]  # fixtures and helpers
Photo = Callable[..., bytes]


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
