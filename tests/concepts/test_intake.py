"""Preparation of images."""

from __future__ import annotations

from pathlib import Path

import torch
from google.rpc import status_pb2
from PIL import Image
from stillhouse.common.v1 import items_pb2

from services.common.blobs import BlobStore
from services.common.fairness import Flow
from services.concepts.intake import Intake, Prepared
from services.concepts.settings import ConceptsSettings
from services.torch_common.preprocess import Preprocessing
from tests.support import photo


async def test_a_large_jpeg_is_decoded_smaller_where_that_is_wanted(tmp_path: Path) -> None:
    door = Intake(ConceptsSettings(), BlobStore(str(tmp_path)))
    large = photo(3, size=(1600, 1200))
    whole, draft = Preprocessing(32), Preprocessing(32, jpeg_draft=True)
    assert (whole.decode_px, draft.decode_px) == (0, 64)
    seen: list[tuple[int, int]] = []

    class Spy(Preprocessing):
        def square(self, image: Image.Image) -> torch.Tensor:
            seen.append(image.size)
            return super().square(image)

    squares = [
        door.read(large, Spy(32, jpeg_draft=drafted)).square.float() for drafted in (False, True)
    ]
    assert seen == [(1600, 1200), (200, 150)]
    assert (squares[0] - squares[1]).abs().mean() < 2


async def test_items_fail_one_by_one(tmp_path: Path) -> None:
    door = Intake(ConceptsSettings(), BlobStore(str(tmp_path)))
    items = [items_pb2.ImageInput(data=data) for data in (photo(0), b"", photo(1)[:300])]
    first, *rest = await door.prepare(items, Flow("default"), Preprocessing(32))
    assert isinstance(first, Prepared)
    assert (first.square.shape, first.square.dtype) == ((32, 32, 3), torch.uint8)
    assert [one.code for one in rest if isinstance(one, status_pb2.Status)] == [3, 3]
