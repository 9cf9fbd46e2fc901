"""Admission and preparation of images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from google.rpc import status_pb2
from stillhouse.common.v1 import items_pb2

from services.common.blobs import BlobStore
from services.common.errors import InvalidInput, Overloaded
from services.concepts.intake import Intake, Prepared
from services.concepts.settings import ConceptsSettings
from services.torch_common.preprocess import Preprocessing
from tests.support import photo

ITEM = items_pb2.ImageInput(data=b"x")


def intake(folder: Path, **settings: int) -> Intake:
    return Intake(ConceptsSettings(**settings), BlobStore(str(folder)))


def test_images_in_the_service_are_bounded(tmp_path: Path) -> None:
    door = intake(tmp_path, max_queue_items=4)
    with door.admitted([ITEM] * 3):
        with pytest.raises(Overloaded), door.admitted([ITEM] * 2):
            pass
        with door.admitted([ITEM]):
            pass
    # Alone, a call larger than the limit is served: refusing it for ever would help nobody.
    with door.admitted([ITEM] * 6):
        pass


def test_a_failed_call_leaves_no_trace(tmp_path: Path) -> None:
    door = intake(tmp_path, max_queue_items=2)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), door.admitted([ITEM] * 2):
            raise ZeroDivisionError
    with door.admitted([ITEM]), door.admitted([ITEM]):
        pass


def test_a_batch_is_neither_empty_nor_too_large(tmp_path: Path) -> None:
    door = intake(tmp_path, max_batch_items=2)
    for items in ([], [ITEM] * 3):
        with pytest.raises(InvalidInput), door.admitted(items):
            pass


async def test_items_fail_one_by_one(tmp_path: Path) -> None:
    door = intake(tmp_path)
    items = [items_pb2.ImageInput(data=data) for data in (photo(0), b"", photo(1)[:300])]
    first, *rest = await door.prepare(items, "default", Preprocessing(32))
    assert isinstance(first, Prepared)
    assert (first.square.shape, first.square.dtype) == ((32, 32, 3), torch.uint8)
    assert [one.code for one in rest if isinstance(one, status_pb2.Status)] == [3, 3]
