"""Teacher outputs of augmented views: what the model says of each view, computed once."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from stillhouse.common.v1 import items_pb2
from stillhouse.teacher.v1 import teacher_pb2

from services.common.augmentation import Augmentation
from services.common.blobs import BlobStore, digest_of
from services.common.errors import InvalidInput
from services.common.manifest import Item, Manifest
from services.common.shards import unpack_rows
from services.common.tensors import from_message
from services.common.view_shards import unpack_views
from services.gateway.jobs import records
from services.gateway.jobs.job import Job
from services.gateway.jobs.outputs import feature_stage, teacher_stage, view_stage
from services.gateway.jobs.plans import TeacherPlan
from services.gateway.jobs.shard_stage import run_shards
from services.torch_common.augment import view_pixels
from services.torch_common.preprocess import Preprocessing
from tests.gateway import stories
from tests.support import photo
from tests.teacher.image_world import CLASSES, NAME, SIZE_PX, TeacherPeers, counted, teacher

LOGITS, FEATURES = teacher_pb2.CLASSIFY_OUTPUT_LOGITS, teacher_pb2.CLASSIFY_OUTPUT_FEATURES
PHOTOS = [photo(n, size=(48, 40)) for n in range(6)]
VIEWS = Augmentation("strong", views=3, seed=5)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def asked(**more) -> teacher_pb2.ClassifyRequest:
    return teacher_pb2.ClassifyRequest(
        **{
            "model": NAME,
            "items": [items_pb2.ImageInput(item_id=str(n), data=d) for n, d in enumerate(PHOTOS)],
            "execution": items_pb2.EXECUTION_SHARD,
            "augmentation": message(VIEWS),
            **more,
        }
    )


def message(views: Augmentation) -> items_pb2.Augmentation:
    return items_pb2.Augmentation(policy=views.policy, views=views.views, seed=views.seed)


async def test_every_view_gets_the_answer_of_its_pixels(tmp_path: Path) -> None:
    async with teacher(tmp_path) as servicer:
        items = [items_pb2.ImageInput(data=data) for data in [*PHOTOS[:5], b"broken"]]
        items[4], items[5] = items[5], items[4]
        reply = await servicer.Classify(asked(items=items, outputs=[LOGITS, FEATURES]), None)
        assert [r.WhichOneof("outcome") for r in reply.results] == (
            ["classification"] * 4 + ["error", "classification"]
        )
        served = await servicer._registry.get("default", "tiny-teacher")
        preprocessing = Preprocessing(SIZE_PX)
        for at, data in [(0, PHOTOS[0]), (5, PHOTOS[4])]:
            image = Image.open(io.BytesIO(data)).convert("RGB")
            batch = torch.stack(
                [
                    preprocessing.normalise(
                        view_pixels(image, digest_of(data), v, VIEWS, preprocessing)
                    )
                    for v in range(3)
                ]
            )
            expected = served.classifier.forward(batch)
            answer = reply.results[at].classification
            np.testing.assert_allclose(from_message(answer.logits), expected.logits, atol=1e-4)
            assert from_message(answer.features).shape == (3, expected.features.shape[1])
        assert reply.timings.batch_size == 4


async def test_without_augmentation_nothing_changes(tmp_path: Path) -> None:
    plain = asked()
    plain.ClearField("augmentation")
    none = asked(augmentation=items_pb2.Augmentation(policy="none"))
    async with teacher(tmp_path) as servicer:
        before = await servicer.Classify(plain, None)
        viewed = await servicer.Classify(none, None)
        again = await servicer.Classify(plain, None)
    for one, two, three in zip(before.results, viewed.results, again.results, strict=True):
        assert one == three
        assert list(one.classification.logits.shape) == [3]
        assert list(two.classification.logits.shape) == [1, 3]
        assert one.classification.logits.data == two.classification.logits.data


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"execution": items_pb2.EXECUTION_ONLINE}, "execution"),
        ({"cross_fitted": True}, "cross_fitted"),
        ({"augmentation": items_pb2.Augmentation(policy="swirl")}, "augmentation.policy"),
        ({"augmentation": items_pb2.Augmentation(policy="none", views=2)}, "augmentation.views"),
    ],
)
async def test_what_cannot_be_is_refused(tmp_path: Path, change, field: str) -> None:  # type: ignore[no-untyped-def]
    async with teacher(tmp_path) as servicer:
        with pytest.raises(InvalidInput) as caught:
            await servicer.Classify(asked(**change), None)
    assert caught.value.field == field


async def test_an_answer_too_large_to_send_is_refused_before_the_work(tmp_path: Path) -> None:
    large = message(Augmentation("strong", views=64))
    many = [items_pb2.ImageInput(data=PHOTOS[0])] * 256
    async with teacher(tmp_path, max_message_bytes=1 << 20) as servicer:
        before = counted()
        with pytest.raises(InvalidInput, match="64 views of 256 images make 3 MiB") as caught:
            await servicer.Classify(
                asked(items=many, augmentation=large, outputs=[LOGITS, FEATURES]), None
            )
        assert caught.value.field == "augmentation.views"
        assert counted() == before


async def test_one_pass_serves_every_job_with_the_same_views(tmp_path: Path) -> None:
    """Other policy, other number of views, other seed: other shards. The same: not one pass."""
    world = stories.make_tools(tmp_path)
    async with teacher(tmp_path) as servicer:
        tools = replace(world, peers=TeacherPeers(servicer))
        row = stories.create(tools)
        job = Job(tools, row, records.spec_of(row))
        await job.progress.begin("teacher_views")
        await job.progress.begin("teacher_outputs")
        await job.progress.begin("features")
        digests = [tools.blobs.put("default", data) for data in [*PHOTOS, b"broken"]]
        items = tuple(Item(f"{n}.jpg", d, "train", (0,)) for n, d in enumerate(digests))
        manifest = Manifest(CLASSES[::-1], False, items)
        described = await servicer.GetModel(teacher_pb2.GetModelRequest(name=NAME), None)
        plan = TeacherPlan(
            name=NAME,
            digest=described.model.digest,
            classes=list(manifest.classes),
            columns=[2, 1, 0],
        )
        passes, images = counted()
        first = await run_shards(job, view_stage(tools, plan, VIEWS), manifest)
        # 6 images of 3 views, in groups of 4 images: padded batches of 4 views.
        assert counted() == (passes + 3 + 2, images + 18)
        assert first["invalid_count"] == 1
        done = counted()
        for _ in range(2):
            assert await run_shards(job, view_stage(tools, plan, VIEWS), manifest) == first
        assert counted() == done
        for other in (
            Augmentation("flip_crop", 3, 5),
            Augmentation("strong", 2, 5),
            Augmentation("strong", 3, 6),
        ):
            before = counted()
            found = await run_shards(job, view_stage(tools, plan, other), manifest)
            assert found["digests"] != first["digests"]
            assert counted()[1] == before[1] + 6 * other.views
        before = counted()
        vectors = await run_shards(job, view_stage(tools, plan, VIEWS, features=True), manifest)
        assert counted()[1] == before[1] + 18
        plain = await run_shards(job, teacher_stage(tools, plan), manifest)
        pooled = await run_shards(job, feature_stage(tools, plan), manifest)
        for name, stored in (("logits", plain), ("features", pooled)):
            # As before there were views: one row an image.
            rows, valid = unpack_rows(name, [tools.blobs.get("default", *stored["digests"])])
            assert (rows.ndim, valid.tolist()) == (2, [True] * 6 + [False])
        blobs = BlobStore(str(tmp_path / "blobs"))
        shards = [blobs.get("default", d) for d in vectors["digests"]]
        table = unpack_views(shards, VIEWS, 3)
        assert set(table.rows) == set(digests[:6])
        assert table.features is not None
        reply = await servicer.Classify(asked(), None)
        told = from_message(reply.results[2].classification.logits)
        np.testing.assert_array_equal(
            table.logits[table.rows[digests[2]]], told[:, ::-1].astype(np.float16)
        )
    await stories.close(world)
