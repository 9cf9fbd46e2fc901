"""What TeacherService gives one project of another's models and images: nothing, and no sign.

It is asked directly, as whoever gets past the gateway would. The tables are checked against the
descriptors: an RPC without a row fails.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import pytest
import pytest_asyncio
from safetensors.torch import save
from stillhouse.common.v1 import items_pb2, language_pb2
from stillhouse.inference.v2 import open_inference_pb2 as oip
from stillhouse.inference.v2 import open_inference_pb2_grpc
from stillhouse.teacher.v1 import teacher_pb2 as pb
from stillhouse.teacher.v1 import teacher_pb2_grpc

from services.common.blobs import BlobStore
from services.common.catalogue import InputSpec
from services.common.classifier_records import ClassifierRecord
from services.common.images import Limits
from services.common.inference.images import ImageLimits
from services.common.inference.servicer import InferenceServicer
from services.common.inference.tensors import raw_elements
from services.common.texts import TextRecord, pack_records
from services.teacher.inference import TeacherInference
from services.teacher.servicer import TeacherServicer
from services.torch_common.classifiers import build_classifier
from tests import isolating
from tests.gateway.parts import serving
from tests.isolating import OPEN_INFERENCE, OURS, THEIRS
from tests.support import photo
from tests.teacher.image_world import CLASSES, MODEL, teacher
from tests.teacher.language_models import publish, write_tiny
from tests.teacher.test_memory import put_head

pytestmark = pytest.mark.asyncio(loop_scope="module")
RPCS = isolating.methods(pb.DESCRIPTOR.services_by_name["TeacherService"], OPEN_INFERENCE)
SHARD = items_pb2.EXECUTION_SHARD
TINY = """
[entries.tiny]
kind = "language-model"
loader = "transformers"
licence = "mine"
source = "file:tiny"
"""


@dataclass(frozen=True)
class Owned(isolating.Owned):
    """Models of each kind by name; an image and a shard of texts by digest."""

    head: str
    classifier: str
    language: str
    image: str
    texts: str


def model(project: str, name: str) -> str:
    return f"projects/{project}/models/{name}"


def images(digest: str = "") -> list[items_pb2.ImageInput]:
    if digest:
        return [items_pb2.ImageInput(digest=digest)]
    return [items_pb2.ImageInput(data=photo(2))]


def classify(project: str, name: str, digest: str = "", **more: object) -> pb.ClassifyRequest:
    items = images(digest)
    return pb.ClassifyRequest(model=model(project, name), items=items, **more)  # type: ignore[arg-type]


def prompt(text: str = "the quick") -> language_pb2.Prompt:
    return language_pb2.Prompt(text=text)


def targets(project: str, name: str, digest: str) -> pb.SampleTargetsRequest:
    shard = pb.TextShard(records=items_pb2.BlobRef(digest=digest), sequence_length=32)
    return pb.SampleTargetsRequest(model=model(project, name), text_shard=shard)


def infer(project: str, name: str) -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(model_name=f"{project}/{name}")
    request.inputs.add(name="images", datatype="BYTES", shape=[1])
    request.raw_input_contents.append(raw_elements([photo(2)]))
    return request


VIEWS = items_pb2.Augmentation(policy="flip_crop", views=2)
REFUSED: isolating.Rows = {
    "GetModel": [
        lambda p, o: pb.GetModelRequest(name=model(p, o.head)),
        lambda p, o: pb.GetModelRequest(name=model(p, o.classifier)),
        lambda p, o: pb.GetModelRequest(name=model(p, o.language)),
    ],
    "Classify": [
        lambda p, o: classify(p, o.head),
        lambda p, o: classify(p, o.head, execution=SHARD, cross_fitted=True),
        lambda p, o: classify(p, o.classifier),
        lambda p, o: classify(p, MODEL, o.image),
        lambda p, o: classify(p, MODEL, o.image, execution=SHARD),
        lambda p, o: classify(p, MODEL, o.image, execution=SHARD, augmentation=VIEWS),
    ],
    "Score": [
        lambda p, o: pb.ScoreRequest(
            model=model(p, o.language), items=[pb.ScoreItem(prompt=prompt(), text=" fox")]
        )
    ],
    "Generate": [
        lambda p, o: pb.GenerateRequest(
            model=model(p, o.language),
            items=[pb.GenerateItem(prompt=prompt())],
            sampling=language_pb2.Sampling(max_tokens=2),
        )
    ],
    "SampleTargets": [
        lambda p, o: targets(p, o.language, o.texts),
        lambda p, o: targets(p, "tiny", o.texts),
    ],
    "LoadModel": [
        lambda p, o: pb.LoadModelRequest(name=model(p, o.head)),
        lambda p, o: pb.LoadModelRequest(name=model(p, o.language)),
    ],
    "ModelMetadata": [lambda p, o: oip.ModelMetadataRequest(name=f"{p}/{o.head}")],
    "ModelInfer": [
        lambda p, o: infer(p, o.head),
        lambda p, o: infer(p, o.classifier),
    ],
    "ModelReady": [lambda p, o: oip.ModelReadyRequest(name=f"{p}/{o.head}")],
    "RepositoryModelLoad": [
        lambda p, o: oip.RepositoryModelLoadRequest(model_name=f"{p}/{o.classifier}")
    ],
    "RepositoryModelUnload": [
        lambda p, o: oip.RepositoryModelUnloadRequest(model_name=f"{p}/{o.classifier}")
    ],
    "UnloadModel": [
        lambda p, o: pb.UnloadModelRequest(name=model(p, o.head)),
        lambda p, o: pb.UnloadModelRequest(name=model(p, o.language)),
    ],
}
"""Requests for what a project has by name or digest."""
UNSEEN: isolating.Rows = {
    "ListModels": [lambda p, o: pb.ListModelsRequest(project=p)],
    "ListLoadedModels": [lambda p, o: pb.ListLoadedModelsRequest(project=p)],
    "RepositoryIndex": [lambda p, o: oip.RepositoryIndexRequest(repository_name=p)],
    "ModelStatistics": [lambda p, o: oip.ModelStatisticsRequest(name=f"{p}/{o.head}")],
    "ForgetProject": [lambda p, o: pb.ForgetProjectRequest(project=p, dry_run=p == THEIRS)],
}
"""Requests about all that a project has; forgetting another project forgets nothing."""
ELSEWHERE = dict.fromkeys(("ServerLive", "ServerReady", "ServerMetadata"), "of the service itself")


@dataclass(frozen=True)
class Running:
    """A service, and what the project THEIRS has."""

    channel: grpc.aio.Channel
    servicer: TeacherServicer
    owned: Owned
    blobs: Path


async def fill(servicer: TeacherServicer, folder: Path) -> Owned:
    """Give THEIRS a head, a classifier, a language model, an image and texts."""
    blobs = BlobStore(str(folder / "blobs"))
    await put_head(servicer, folder, MODEL)
    weights = blobs.put(THEIRS, save(build_classifier("small-cnn", 3, 16).state_dict()))
    record = ClassifierRecord("small-cnn", CLASSES, True, weights, InputSpec(size_px=16))
    blobs.put_ref(THEIRS, "models/pupil", record.to_bytes())
    publish(blobs, write_tiny(folder / "theirs", seed=3), "tuned")
    records = [TextRecord("r1", text="the lazy dog sat on a mat near the door. " * 3)]
    return Owned(
        head="head",
        classifier="pupil",
        language="tuned",
        image=blobs.put(THEIRS, photo(1)),
        texts=blobs.put(THEIRS, pack_records(records)),
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    folder = tmp_path_factory.mktemp("isolation")
    write_tiny(folder / "tiny")
    async with teacher(folder, entries=TINY, precision="float32") as servicer:
        limits = ImageLimits(Limits(1 << 20, 1 << 20), 16)
        inference = InferenceServicer("teacher", TeacherInference(servicer, limits), lambda: True)

        def register(server: grpc.aio.Server) -> None:
            teacher_pb2_grpc.add_TeacherServiceServicer_to_server(servicer, server)
            open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(inference, server)

        async with serving(register) as channel:
            owned = await fill(servicer, folder)
            yield Running(channel, servicer, owned, folder / "blobs")


async def test_every_rpc_is_in_a_table() -> None:
    isolating.check_tables(RPCS, REFUSED, UNSEEN, ELSEWHERE)


@pytest.mark.parametrize("name", list(REFUSED))
async def test_what_is_of_another_project_is_not_there(running: Running, name: str) -> None:
    before = isolating.stored(running.blobs)
    for ask in REFUSED[name]:
        await isolating.check_refused(running.channel, RPCS[name], ask, running.owned)
    assert before.items() <= isolating.stored(running.blobs).items()


@pytest.mark.parametrize("name", list(UNSEEN))
async def test_nothing_of_another_project_is_listed_or_forgotten(
    running: Running, name: str
) -> None:
    for one in (running.owned.head, running.owned.language):
        name_of = model(THEIRS, one)
        loaded = await isolating.call(
            running.channel, RPCS["LoadModel"], pb.LoadModelRequest(name=name_of)
        )
        assert loaded.code == "OK"
    assert not (
        await isolating.call(running.channel, RPCS["ModelInfer"], infer(THEIRS, running.owned.head))
    ).refusals
    for ask in UNSEEN[name]:
        await isolating.check_unseen(running.channel, RPCS[name], ask, running.owned)


async def test_an_adapter_stands_on_no_model_of_another_project(
    running: Running, tmp_path: Path
) -> None:
    """The record of B's model may name anything; it is looked up in B alone."""
    blobs = BlobStore(str(running.blobs))
    record = publish(blobs, write_tiny(tmp_path / "own", seed=4), "own")
    for name in ("own", running.owned.language):  # the same files by digest, and a base by name
        changed = record.to_bytes()
        if name != "own":
            changed = type(record)(
                "adapter", record.files, "0" * 64, "0" * 64, base=name
            ).to_bytes()
        blobs.put_ref(OURS, "models/stolen", changed)
        answer = await isolating.call(
            running.channel, RPCS["GetModel"], pb.GetModelRequest(name=model(OURS, "stolen"))
        )
        assert answer.code == "NOT_FOUND", answer
    blobs.remove_project(OURS)
