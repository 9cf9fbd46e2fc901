"""Models of the teacher in memory: the budget, load and unload, and calls in flight."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from stillhouse.common.v1 import items_pb2
from stillhouse.teacher.v1 import teacher_pb2 as pb

from services.common.blobs import BlobStore, digest_of
from services.common.errors import NotFound, Precondition
from services.common.tensors import pack_arrays
from services.teacher import registry
from services.teacher.backbones import load_classifier
from services.teacher.models import ImageClassifier
from services.teacher.servicer import TeacherServicer
from tests.support import photo
from tests.teacher.image_world import CLASSES, MODEL, NAME, SIZE_PX, teacher
from tests.torch_common.other_threads import one_thread_elsewhere

HEAD = "projects/default/models/head"
SECOND = "projects/default/models/tiny-second"


def with_second(folder: Path) -> Path:
    """A catalogue with the same network under a second name."""
    path = folder / "more.toml"
    path.write_text(
        '[entries.tiny-second]\nkind = "image-classifier"\nloader = "timm"\nlicence = "CC0-1.0"\n'
        f'architecture = "test_resnet"\nsource = "file:{folder / "tiny.safetensors"}"\n'
        f"classes = {list(CLASSES)}\ninput = {{ size_px = {SIZE_PX} }}\n"
    )
    return path


async def put_head(servicer: TeacherServicer, folder: Path, backbone: str) -> None:
    """Store a head on a model of the catalogue."""
    described = await servicer._registry.get("default", backbone)
    width = described.classifier.feature_dim
    torch.manual_seed(1)
    data = pack_arrays({"weight": torch.randn(2, width).numpy(), "bias": torch.zeros(2).numpy()})
    blobs = BlobStore(str(folder / "blobs"))
    record = (
        f'{{"kind": "linear_head", "backbone": "{backbone}", "classes": ["a", "b"], '
        f'"backbone_digest": "{described.classifier.digest}", "head": "{digest_of(data)}"}}'
    )
    blobs.put("default", data)
    blobs.put_ref("default", "models/head", record.encode())


def asked(name: str) -> pb.ClassifyRequest:
    return pb.ClassifyRequest(model=name, items=[items_pb2.ImageInput(data=photo(1))])


async def names(servicer: TeacherServicer) -> list[str]:
    reply = await servicer.ListLoadedModels(pb.ListLoadedModelsRequest(project="default"), None)
    return [one.name.rsplit("/", 1)[-1] for one in reply.models]


async def test_models_are_loaded_listed_and_put_away(tmp_path: Path) -> None:
    async with teacher(tmp_path, also=with_second, preload="other") as servicer:
        loaded = (await servicer.LoadModel(pb.LoadModelRequest(name=NAME), None)).model
        assert (loaded.name, loaded.pinned, loaded.calls) == (NAME, False, 0)
        assert loaded.size_bytes > 10_000
        assert loaded.digest == (await servicer.Classify(asked(NAME), None)).model_digest
        await servicer.Classify(asked(SECOND), None)
        assert await names(servicer) == [MODEL, "tiny-second"]
        for was_loaded in (True, False):
            reply = await servicer.UnloadModel(pb.UnloadModelRequest(name=NAME), None)
            assert reply.was_loaded == was_loaded
        assert await names(servicer) == ["tiny-second"]
        with pytest.raises(NotFound):
            await servicer.UnloadModel(
                pb.UnloadModelRequest(name="projects/default/models/nobody"), None
            )
        assert (await servicer.Classify(asked(NAME), None)).results[0].HasField("classification")


async def test_a_load_computes_with_the_services_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def noting(*what: Any) -> ImageClassifier:
        seen.append(torch.get_num_threads())
        return load_classifier(*what)

    monkeypatch.setattr(registry, "load_classifier", noting)
    with one_thread_elsewhere() as seen:
        async with teacher(tmp_path, threads=3) as servicer:
            await servicer.LoadModel(pb.LoadModelRequest(name=NAME), None)
    assert seen == [3]


async def test_the_preloaded_model_stays(tmp_path: Path) -> None:
    async with teacher(tmp_path, also=with_second, max_models_bytes=1) as servicer:
        await servicer.canary()
        with pytest.raises(Precondition, match="stays"):
            await servicer.UnloadModel(pb.UnloadModelRequest(name=NAME), None)
        with pytest.raises(Precondition, match="max_models_bytes"):
            await servicer.Classify(asked(SECOND), None)
        assert await names(servicer) == [MODEL]


async def test_a_head_keeps_its_trunk_and_leaves_with_it(tmp_path: Path) -> None:
    async with teacher(tmp_path, also=with_second, preload="other") as servicer:
        await put_head(servicer, tmp_path, MODEL)
        await servicer.Classify(asked(HEAD), None)
        trunk, head = servicer._registry.loaded_models()[::-1]
        assert (trunk.model_id, head.model_id) == (MODEL, "head")
        assert head.size_bytes < trunk.size_bytes / 10
        assert servicer._registry.loaded("default").keys() == {MODEL, "head"}
        assert servicer._registry.loaded("other-project").keys() == {MODEL}
        await servicer.UnloadModel(pb.UnloadModelRequest(name=NAME), None)
        assert await names(servicer) == []
        assert (await servicer.Classify(asked(HEAD), None)).results[0].HasField("classification")


async def test_a_model_makes_room_but_not_while_it_answers(tmp_path: Path) -> None:
    async with teacher(tmp_path, also=with_second, preload="other") as servicer:
        size = (await servicer.LoadModel(pb.LoadModelRequest(name=NAME), None)).model.size_bytes
    async with teacher(
        tmp_path, also=with_second, preload="other", max_models_bytes=size + size // 2
    ) as servicer:
        await servicer.Classify(asked(NAME), None)
        await servicer.Classify(asked(SECOND), None)
        assert await names(servicer) == ["tiny-second"]
        rivals = [asked(NAME if n % 2 else SECOND) for n in range(12)]
        replies = await asyncio.gather(
            *(servicer.Classify(one, None) for one in rivals), return_exceptions=True
        )
        answers = [one for one in replies if isinstance(one, pb.ClassifyResponse)]
        assert answers
        assert all(one.results[0].HasField("classification") for one in answers)
        assert {type(one).__name__ for one in replies} <= {"ClassifyResponse", "Overloaded"}
        assert len(await names(servicer)) == 1
