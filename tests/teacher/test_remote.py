"""Classifiers in servers of the Open Inference Protocol, behind TeacherService."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image
from stillhouse.common.v1 import items_pb2
from stillhouse.teacher.v1 import teacher_pb2

from services.common.augmentation import Augmentation
from services.common.blobs import digest_of
from services.common.errors import Overloaded, PeerUnavailable, Precondition, StillhouseError
from services.common.images import Limits, decode
from services.common.inference.images import ImageLimits
from services.common.inference.servicer import InferenceServicer
from services.common.tensors import from_message
from services.teacher.inference import TeacherInference
from services.teacher.servicer import TeacherServicer
from services.torch_common.augment import view_pixels
from services.torch_common.preprocess import Preprocessing
from tests.support import free_port, photo
from tests.teacher.image_world import CLASSES, MODEL, NAME, teacher
from tests.teacher.oip_server import ColourServer, served

FAR = "projects/default/models/far"
SQUARE = Preprocessing(size_px=16, crop_pct=0.875, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def entry(port: int, **fields: object) -> str:
    """The catalogue entry `far`."""
    told = {
        "kind": "image-classifier",
        "loader": "oip",
        "licence": "MIT",
        "url": f"grpc://127.0.0.1:{port}",
        "remote_model": MODEL,
        "input_name": "images",
        "output_name": "logits",
        "classes": list(CLASSES),
        **fields,
    }
    lines = [
        f"{key} = {str(value).lower() if isinstance(value, bool) else value!r}"
        for key, value in told.items()
    ]
    return "\n".join(["[entries.far]", *lines, ""])


def colours(port: int, input_format: str, **fields: object) -> str:
    """The entry of a ColourServer."""
    means = "mean = [0.5, 0.5, 0.5], std = [0.5, 0.5, 0.5]"
    square = f"input = {{ size_px = 16, crop_pct = 0.875, {means} }}"
    known = {"remote_model": "colours", "input_name": "pixels", "output_name": "means"}
    return entry(port, input_format=input_format, **{**known, **fields}) + square


async def classify(
    servicer: TeacherServicer,
    data: list[bytes],
    model: str = FAR,
    *,
    left_s: float | None = None,
    **fields: Any,
) -> teacher_pb2.ClassifyResponse:
    """Classify as a caller that waits for `left_s` seconds."""
    items = [items_pb2.ImageInput(item_id=str(n), data=one) for n, one in enumerate(data)]
    request = teacher_pb2.ClassifyRequest(model=model, items=items, **fields)
    context = SimpleNamespace(time_remaining=lambda: left_s)
    return await servicer.Classify(request, context)  # type: ignore[arg-type]


async def described(servicer: TeacherServicer, model: str = FAR) -> teacher_pb2.Model:
    request = teacher_pb2.GetModelRequest(name=model)
    return (await servicer.GetModel(request, None)).model  # type: ignore[arg-type]


def logits(response: teacher_pb2.ClassifyResponse) -> np.ndarray:
    return np.stack([from_message(one.classification.logits) for one in response.results])


def inference(servicer: TeacherServicer) -> InferenceServicer[Any]:
    limits = ImageLimits(Limits(), 256)
    return InferenceServicer("teacher", TeacherInference(servicer, limits), lambda: True)


async def test_a_teacher_behind_another_server_answers_as_it_does_there(tmp_path: Path) -> None:
    async with (
        teacher(tmp_path / "there") as there,
        served(inference(there)) as port,
        teacher(tmp_path / "here", entries=entry(port, max_batch=3)) as here,
    ):
        data = [photo(n) for n in range(8)]
        response = await classify(here, [*data[:4], b"broken", *data[4:]])
        assert [one.error.code for one in response.results] == [0] * 4 + [3] + [0] * 4
        good = teacher_pb2.ClassifyResponse(
            results=[one for one in response.results if one.HasField("classification")]
        )
        wanted = logits(await classify(there, data, NAME))
        np.testing.assert_allclose(
            logits(good), wanted, atol=2e-5
        )  # other batches, other last bits
        told = await described(here)
        assert told.digest == response.model_digest
        assert list(told.image_classifier.classes) == list(CLASSES)
        assert told.image_classifier.feature_dim == 0


async def test_probabilities_become_logits_with_the_same_softmax(tmp_path: Path) -> None:
    fields = {"output_name": "probabilities", "output_kind": "probabilities"}
    async with (
        teacher(tmp_path / "there") as there,
        served(inference(there)) as port,
        teacher(tmp_path / "here", entries=entry(port, **fields)) as here,
    ):
        found = logits(await classify(here, [photo(5)]))
        wanted = logits(await classify(there, [photo(5)], NAME))
        shift = found - wanted
        np.testing.assert_allclose(shift, shift[:, :1] * np.ones(3), atol=1e-5)


@pytest.mark.parametrize("typed", [False, True])
async def test_pixels_are_cropped_here_and_sent_as_they_are(tmp_path: Path, typed: bool) -> None:
    there = ColourServer("UINT8", (-1, 16, 16, 3))
    there.typed = typed
    async with served(there) as port, teacher(tmp_path, entries=colours(port, "uint8")) as here:
        response = await classify(here, [photo(1), photo(2)])
        for at, seed in enumerate((1, 2)):
            square = np.asarray(SQUARE.pixels(decode(photo(seed))))
            np.testing.assert_array_equal(there.seen[0][at], square)
            np.testing.assert_allclose(logits(response)[at], square.mean(axis=(0, 1)), rtol=1e-5)


async def test_normalised_pixels_go_channels_first_where_asked(tmp_path: Path) -> None:
    there = ColourServer("FP32", (-1, 3, 16, 16))
    async with (
        served(there) as port,
        teacher(tmp_path, entries=colours(port, "fp32", input_layout="nchw")) as here,
    ):
        await classify(here, [photo(1)])
        np.testing.assert_array_equal(there.seen[0][0], SQUARE(decode(photo(1))).numpy())


async def test_views_are_made_here_where_pixels_are_sent(tmp_path: Path) -> None:
    there = ColourServer("UINT8", (-1, 16, 16, 3))
    asked = items_pb2.Augmentation(policy="flip_crop", views=3, seed=7)
    async with (
        served(there) as port,
        teacher(tmp_path, entries=colours(port, "uint8", max_batch=4)) as here,
    ):
        shard = items_pb2.EXECUTION_SHARD
        data = [photo(1), b"broken", photo(2)]
        response = await classify(here, data, augmentation=asked, execution=shard)
        assert [one.error.code for one in response.results] == [0, 3, 0]
        found = from_message(response.results[2].classification.logits)
        views = Augmentation("flip_crop", 3, 7)
        squares = [
            view_pixels(decode(photo(2)), digest_of(photo(2)), n, views, SQUARE) for n in range(3)
        ]
        wanted = np.stack([np.asarray(one).mean(axis=(0, 1)) for one in squares])
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
        assert max(there.batches) <= 4


async def test_a_refused_batch_is_asked_one_by_one(tmp_path: Path) -> None:
    there = ColourServer("UINT8", (-1, 16, 16, 3))
    there.refuse_above = 250
    white = Image.new("RGB", (9, 9), (255, 255, 255))
    (tmp_path / "white.png").touch()
    white.save(tmp_path / "white.png")
    data = [photo(1), (tmp_path / "white.png").read_bytes(), photo(2)]
    async with served(there) as port, teacher(tmp_path, entries=colours(port, "uint8")) as here:
        response = await classify(here, data)
        assert [one.error.code for one in response.results] == [0, 3, 0]
        assert "too bright" in response.results[1].error.message


async def refused(work: Any) -> StillhouseError:
    with pytest.raises(StillhouseError) as caught:
        await work
    return caught.value


async def test_what_it_cannot_give_is_a_precondition(tmp_path: Path) -> None:
    features = [teacher_pb2.CLASSIFY_OUTPUT_FEATURES]
    views = items_pb2.Augmentation(policy="flip_crop", views=2)
    async with teacher(tmp_path, entries=entry(1)) as here:
        found = await refused(classify(here, [photo(0)], outputs=features))
        assert isinstance(found, Precondition)
        assert "features" in found.differences.values()
        shard = items_pb2.EXECUTION_SHARD
        call = classify(here, [photo(0)], augmentation=views, execution=shard)
        assert isinstance(await refused(call), Precondition)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"remote_model": "nothing"}, "no model nothing"),
        ({"input_name": "x"}, "no input 'x'"),
        ({"output_name": "x"}, "no output 'x'"),
        ({"input_format": "fp32"}, "UINT8"),
        ({"classes": ["a", "b"]}, "3 classes, the entry 2"),
    ],
)
async def test_another_model_than_the_entry_tells_is_found_before_work(
    tmp_path: Path, fields: dict[str, object], why: str
) -> None:
    there = ColourServer("UINT8", (-1, 16, 16, 3))
    given = {"input_format": "uint8", **fields}
    async with (
        served(there) as port,
        teacher(tmp_path, entries=colours(port, str(given.pop("input_format")), **given)) as here,
    ):
        found = await refused(described(here))
        assert isinstance(found, Precondition)
        assert why in found.message


@pytest.mark.parametrize("values", [np.zeros((1, 2)), np.full((1, 3), np.nan), np.zeros((2, 3))])
async def test_an_answer_of_another_form_is_a_precondition(
    tmp_path: Path, values: np.ndarray
) -> None:
    there = ColourServer("UINT8", (-1, 16, 16, 3))
    there.answer = values
    async with served(there) as port, teacher(tmp_path, entries=colours(port, "uint8")) as here:
        assert isinstance(await refused(classify(here, [photo(1)])), Precondition)


async def test_a_server_that_comes_back_only_delays(tmp_path: Path) -> None:
    there, port = ColourServer("UINT8", (-1, 16, 16, 3)), free_port()
    async with teacher(tmp_path, entries=colours(port, "uint8"), oip_retry_s=20) as here:
        asked = asyncio.create_task(classify(here, [photo(1)]))
        await asyncio.sleep(0.5)
        assert not asked.done()
        async with served(there, port):
            assert logits(await asked).shape == (1, 3)
            there.failures = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAVAILABLE]
            assert logits(await classify(here, [photo(1)])).shape == (1, 3)


async def test_failures_keep_their_meaning(tmp_path: Path) -> None:
    there = ColourServer("UINT8", (-1, 16, 16, 3))
    limits = {"oip_retry_s": 0.0, "max_queue_items": 4}
    async with (
        served(there) as port,
        teacher(tmp_path, entries=colours(port, "uint8"), **limits) as here,
    ):
        await classify(here, [photo(1)])
        for code, wanted in (
            (grpc.StatusCode.UNAVAILABLE, PeerUnavailable),
            (grpc.StatusCode.INTERNAL, PeerUnavailable),
            (grpc.StatusCode.UNKNOWN, PeerUnavailable),
            (grpc.StatusCode.RESOURCE_EXHAUSTED, Overloaded),
            (grpc.StatusCode.UNAUTHENTICATED, Precondition),
        ):
            there.failures = [code]
            assert type(await refused(classify(here, [photo(1)]))) is wanted, code
        there.slow_s = 60
        slow = asyncio.create_task(classify(here, [photo(n) for n in range(3)], left_s=0.5))
        await asyncio.sleep(0)
        assert type(await refused(classify(here, [photo(0)] * 2))) is Overloaded
        assert type(await refused(slow)) is PeerUnavailable


async def test_a_new_version_changes_the_digest(tmp_path: Path) -> None:
    there = ColourServer("UINT8", (-1, 16, 16, 3))
    async with served(there) as port, teacher(tmp_path, entries=colours(port, "uint8")) as here:
        first = (await classify(here, [photo(1)])).model_digest
        there.versions = ["1", "2"]
        assert type(await refused(classify(here, [photo(1)]))) is PeerUnavailable
        second = (await classify(here, [photo(1)])).model_digest
        assert first != second == (await described(here)).digest


async def test_it_is_listed_without_being_asked(tmp_path: Path) -> None:
    async with teacher(tmp_path, entries=entry(1)) as here:
        request = teacher_pb2.ListModelsRequest(project="default")
        listed = await here.ListModels(request, None)  # type: ignore[arg-type]
        (far,) = [one for one in listed.models if one.name == FAR]
        assert list(far.image_classifier.classes) == list(CLASSES)
