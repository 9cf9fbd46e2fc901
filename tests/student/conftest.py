"""What modules that train in this process share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from services.common.blobs import BlobStore


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One thread of torch: the same numbers on every machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for a module's blobs, runs and catalogue."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def blobs(home: Path) -> BlobStore:
    """The blob store in it."""
    return BlobStore(str(home / "blobs"))
